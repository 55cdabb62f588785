//! The Xen PV USB ring ABI and codec (usbif.h)
