// SPDX-License-Identifier: GPL-3.0-or-later
//! The adapter for Linux: `gntdev` and `evtchn`.
