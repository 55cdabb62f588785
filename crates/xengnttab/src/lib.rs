//! Grant table devices of Linux (gntdev, gntalloc) from user space
