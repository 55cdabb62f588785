//! The adapter for Linux: `gntdev` and `evtchn`.
