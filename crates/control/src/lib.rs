//! The daemon's control socket: requests and answers between xl-vusb and vusbd
