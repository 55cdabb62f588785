//! vusb-exporter: lends USB devices to a pool
