// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb`: the administrator's command, and the seams into `xl` and XAPI.
#![forbid(unsafe_code)]

pub mod host_name;
pub mod pool;

#[cfg(test)]
mod test_dir;
