//! The lab: real Xen hosts under emulation
