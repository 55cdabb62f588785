// SPDX-License-Identifier: GPL-3.0-or-later
//! Guests that mean harm, with another one at work beside them.

mod beside;
mod frontend;
mod nonsense;
mod scene;
mod share;
mod storm;
