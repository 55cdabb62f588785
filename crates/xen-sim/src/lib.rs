//! A stand-in for Xen: xenstore, grants, event channels and domains for real processes
