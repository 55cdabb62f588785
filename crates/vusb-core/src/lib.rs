//! The port, device and URB machine of one PV USB controller
