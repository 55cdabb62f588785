// SPDX-License-Identifier: GPL-3.0-or-later
//! Guests that mean harm, with another one at work beside them.

mod frontend;
mod nonsense;
mod scene;
mod storm;
