//! The hand-off machine of a migrating controller, and its saved state
