// SPDX-License-Identifier: GPL-3.0-or-later
//! The backend's end of a device connection.
