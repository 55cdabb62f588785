/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that this driver is built for, 6.1 and later. Some of what
 * changed in between is not used for that reason: xenbus_read_driver_state(), timers.
 */
#ifndef XEN_VUSB_HCD_COMPAT_H
#define XEN_VUSB_HCD_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "xen-vusb-hcd needs Linux 6.1 or later"
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

#include <linux/mm.h>

/*
 * A large kmalloc() is whole pages, but since 6.15 it is no more kept by references to them than a
 * small one is, and taking one is warned about.
 */
static inline bool vusb_page_of_kmalloc(struct page *page)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
	return folio_test_large_kmalloc(page_folio(page));
#else
	return false;
#endif
}

#endif
