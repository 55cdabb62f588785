// SPDX-License-Identifier: GPL-3.0-or-later
//! TLS 1.3 connections between a pool's backends and exporters.
//!
//! Every connection is authenticated at both ends with certificates of the pool's CA. A host's name
//! is the first DNS name of its certificate; `xl-vusb pool issue HOST` makes both.
#![forbid(unsafe_code)]
