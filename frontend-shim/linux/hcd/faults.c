// SPDX-License-Identifier: GPL-2.0
/* Faults for tests; see faults.h. */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fault-inject.h>
#include <linux/gfp.h>
#include <linux/preempt.h>

#include "faults.h"

#ifndef CONFIG_FAULT_INJECTION_DEBUG_FS
#error "VUSB_FAULTS needs a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS"
#endif

static DECLARE_FAULT_ATTR(fail_pages);
static DECLARE_FAULT_ATTR(fail_grants);
static u32 enqueue_delay_us;
static struct dentry *directory;

void vusb_faults_init(void)
{
	directory = debugfs_create_dir("xen-vusb-hcd", NULL);
	fault_create_debugfs_attr("fail_pages", directory, &fail_pages);
	fault_create_debugfs_attr("fail_grants", directory, &fail_grants);
	debugfs_create_u32("enqueue_delay_us", 0600, directory, &enqueue_delay_us);
}

void vusb_faults_exit(void)
{
	debugfs_remove_recursive(directory);
}

bool vusb_fault_page(void)
{
	return should_fail(&fail_pages, 1);
}

bool vusb_fault_grant(void)
{
	return should_fail(&fail_grants, 1);
}

void vusb_fault_delay(gfp_t gfp)
{
	u32 us = READ_ONCE(enqueue_delay_us);

	if (!us)
		return;
	/* Others run meanwhile, also where there is one processor. */
	if (gfpflags_allow_blocking(gfp) && !in_atomic() && !irqs_disabled())
		usleep_range(us, 2 * us);
	else
		udelay(min(us, 1000u));
}
