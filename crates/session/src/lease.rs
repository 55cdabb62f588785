// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter's leases: who holds which device, under which epoch.
