// SPDX-License-Identifier: GPL-3.0-or-later
mod codec;
mod hostile;
mod memory;
mod model;
