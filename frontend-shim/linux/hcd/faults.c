// SPDX-License-Identifier: GPL-2.0
/* Faults for tests; see faults.h. */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fault-inject.h>
#include <linux/gfp.h>
#include <linux/platform_device.h>
#include <linux/preempt.h>

#include "faults.h"

#ifndef CONFIG_FAULT_INJECTION_DEBUG_FS
#error "VUSB_FAULTS needs a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS"
#endif

static DECLARE_FAULT_ATTR(fail_pages);
static DECLARE_FAULT_ATTR(fail_grants);
static DECLARE_FAULT_ATTR(lose_grants);
static u32 enqueue_delay_us;
static u32 refuse_suspend;
static struct dentry *directory;
static struct platform_device *refuser;

static int refuse(struct device *dev)
{
	return READ_ONCE(refuse_suspend) ? -EBUSY : 0;
}

static const struct dev_pm_ops refuser_pm_ops = {
	.freeze = refuse,
};

static struct platform_driver refuser_driver = {
	.driver.name = "xen-vusb-hcd-faults",
	.driver.pm = &refuser_pm_ops,
};

int vusb_faults_init(void)
{
	int err = platform_driver_register(&refuser_driver);

	if (err)
		return err;
	refuser = platform_device_register_simple(refuser_driver.driver.name, PLATFORM_DEVID_NONE,
						  NULL, 0);
	if (IS_ERR(refuser)) {
		platform_driver_unregister(&refuser_driver);
		return PTR_ERR(refuser);
	}
	directory = debugfs_create_dir("xen-vusb-hcd", NULL);
	fault_create_debugfs_attr("fail_pages", directory, &fail_pages);
	fault_create_debugfs_attr("fail_grants", directory, &fail_grants);
	fault_create_debugfs_attr("lose_grants", directory, &lose_grants);
	debugfs_create_u32("enqueue_delay_us", 0600, directory, &enqueue_delay_us);
	debugfs_create_u32("refuse_suspend", 0600, directory, &refuse_suspend);
	return 0;
}

void vusb_faults_exit(void)
{
	debugfs_remove_recursive(directory);
	platform_device_unregister(refuser);
	platform_driver_unregister(&refuser_driver);
}

/* Consumers are suspended before their suppliers. */
void vusb_fault_suspend_first(struct device *dev)
{
	if (!device_link_add(dev, &refuser->dev, DL_FLAG_AUTOREMOVE_CONSUMER))
		dev_warn(dev, "no link to what refuses a suspend\n");
}

bool vusb_fault_page(void)
{
	return should_fail(&fail_pages, 1);
}

bool vusb_fault_grant(void)
{
	return should_fail(&fail_grants, 1);
}

bool vusb_fault_lost_grant(void)
{
	return should_fail(&lose_grants, 1);
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
