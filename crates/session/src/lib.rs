//! The exporter session: wire types, the two ends of a device session, and the lease table, without I/O
