//! A PV USB frontend: the ring's other half
