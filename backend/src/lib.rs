//! vusbd: the PV USB backend daemon
