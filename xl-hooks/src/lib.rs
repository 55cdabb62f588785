//! xl-vusb: the administrator's command, and the seams into xl and XAPI
