//! Simulated USB devices
