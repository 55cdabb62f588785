// SPDX-License-Identifier: GPL-3.0-or-later
//! See the package description.
#![forbid(unsafe_code)]
