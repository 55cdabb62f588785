/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Faults for tests, in builds with VUSB_FAULTS=1 and a kernel with CONFIG_FAULT_INJECTION. Nothing of
 * this is in any other build.
 *
 * They are switched on in debugfs, in xen-vusb-hcd/:
 * fail_pages/, fail_grants/   bounce pages and grant references cannot be had; the files are those of
 *                             Documentation/fault-injection
 * lose_grants/                grant references are gone when a request has been answered
 * enqueue_delay_us            how long an URB is late between two looks at its endpoint
 * refuse_suspend              1: the domain's devices cannot be suspended, which is found out when the
 *                             controllers have been
 */
#ifndef XEN_VUSB_HCD_FAULTS_H
#define XEN_VUSB_HCD_FAULTS_H

#include <linux/types.h>

struct device;

#ifdef VUSB_FAULTS

int vusb_faults_init(void);
void vusb_faults_exit(void);
bool vusb_fault_page(void);
bool vusb_fault_grant(void);
bool vusb_fault_lost_grant(void);
void vusb_fault_delay(gfp_t gfp);
void vusb_fault_suspend_first(struct device *dev);

#else

static inline int vusb_faults_init(void)
{
	return 0;
}

static inline void vusb_faults_exit(void)
{
}

static inline bool vusb_fault_page(void)
{
	return false;
}

static inline bool vusb_fault_grant(void)
{
	return false;
}

static inline bool vusb_fault_lost_grant(void)
{
	return false;
}

static inline void vusb_fault_delay(gfp_t gfp)
{
}

static inline void vusb_fault_suspend_first(struct device *dev)
{
}

#endif
#endif
