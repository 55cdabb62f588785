// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter's end of a device connection.
