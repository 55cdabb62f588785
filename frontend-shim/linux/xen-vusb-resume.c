// SPDX-License-Identifier: GPL-2.0
/*
 * xen-vusb-resume: gives the stock Xen USB frontend the resume callback it lacks.
 *
 * After a live migration xenbus puts every frontend back to Initialising and calls its driver's
 * resume callback, before the devices above it resume. xen-hcd has none: it reconnects only when
 * the watch on its backend fires, and watches run in the very thread that is resuming. So the
 * drivers of the USB devices resume first, and the URBs that they submit go to a ring that
 * nobody serves any more.
 *
 * This module finds the driver that the frontend bus calls "vusb" and
 *  - sets its resume callback to one that reconnects at once, by telling the driver's own
 *    otherend_changed handler what it would be told later: that the backend waits;
 *  - has it announce this in the frontend's xenstore directory, feature-resume = 1, before the
 *    frontend connects, so that the backend knows that this guest may be migrated with its
 *    devices in use.
 *
 * The driver's code is not changed: both handlers are members of struct xenbus_driver, which the bus reads at each call.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kmod.h>
#include <linux/module.h>
#include <linux/mutex.h>

#include <xen/xen.h>
#include <xen/xenbus.h>

#define FEATURE_NODE	"feature-resume"

static void (*stock_otherend_changed)(struct xenbus_device *dev,
				      enum xenbus_state backend_state);

static void announce(struct xenbus_device *dev)
{
	int err = xenbus_write(XBT_NIL, dev->nodename, FEATURE_NODE, "1");

	if (err)
		dev_warn(&dev->dev, "cannot write %s: %d\n", FEATURE_NODE, err);
}

static void resuming_otherend_changed(struct xenbus_device *dev,
				      enum xenbus_state backend_state)
{
	/* The backend reads the node when it sees us Connected. */
	if (dev->state == XenbusStateInitialising)
		announce(dev);
	stock_otherend_changed(dev, backend_state);
}

static int resume(struct xenbus_device *dev)
{
	/*
	 * A migrated domain has a new xenstore directory, so the node is gone. The toolstack
	 * lets a domain run only after every backend has reached InitWait: the state need not
	 * be read, and the backend's rings can be set up now. Later notifications of the same
	 * state find the frontend Connected and are ignored by it.
	 */
	announce(dev);
	stock_otherend_changed(dev, XenbusStateInitWait);
	if (dev->state != XenbusStateConnected) {
		dev_err(&dev->dev, "frontend did not reconnect on resume\n");
		/* Not an error for the bus: its watch gives the frontend another chance. */
	}
	return 0;
}

/*
 * The frontend bus is not exported. A driver that is registered on it and matches nothing
 * learns it.
 */
static const struct xenbus_device_id probe_ids[] = {
	{ "xen-vusb-resume" },
	{ "" },
};

static int probe_nothing(struct xenbus_device *dev,
			 const struct xenbus_device_id *id)
{
	return -ENODEV;
}

static struct xenbus_driver probe_driver = {
	.name = "xen-vusb-resume",
	.ids = probe_ids,
	.probe = probe_nothing,
	.not_essential = true,
};

static struct xenbus_driver *vusb;

static void for_each_controller(int (*act)(struct device *device, void *unused))
{
	int err = driver_for_each_device(&vusb->driver, NULL, NULL, act);

	if (err)
		pr_warn("not all controllers were reached: %d\n", err);
}

static int announce_connected(struct device *device, void *unused)
{
	struct xenbus_device *dev = to_xenbus_device(device);

	device_lock(device);
	if (device->driver)
		announce(dev);
	device_unlock(device);
	return 0;
}

static int __init xen_vusb_resume_init(void)
{
	struct device_driver *driver;
	int err;

	if (!xen_domain())
		return -ENODEV;

	/* May be built in, or absent: what counts is whether the bus has it afterwards. */
	request_module("xen-hcd");

	err = xenbus_register_frontend(&probe_driver);
	if (err)
		return err;

	driver = driver_find("vusb", probe_driver.driver.bus);
	if (!driver) {
		pr_err("this kernel has no xen-hcd\n");
		err = -ENODEV;
		goto unregister;
	}
	/* The driver must not go away while we hold its handlers. */
	if (!try_module_get(driver->owner)) {
		err = -ENODEV;
		goto unregister;
	}
	vusb = to_xenbus_driver(driver);
	if (vusb->resume) {
		pr_info("xen-hcd resumes by itself, nothing to do\n");
		err = -EEXIST;
		goto put;
	}

	stock_otherend_changed = vusb->otherend_changed;
	/* The bus calls the handler through the pointer at any time. */
	smp_store_release(&vusb->otherend_changed, resuming_otherend_changed);
	smp_store_release(&vusb->resume, resume);

	/* Controllers that connected before us: the backend watches the node. */
	for_each_controller(announce_connected);
	return 0;

put:
	module_put(driver->owner);
unregister:
	xenbus_unregister_driver(&probe_driver);
	return err;
}

static int withdraw(struct device *device, void *unused)
{
	struct xenbus_device *dev = to_xenbus_device(device);

	/* The PM core resumes a device under its lock: once we had it, nobody is in resume(). */
	device_lock(device);
	xenbus_rm(XBT_NIL, dev->nodename, FEATURE_NODE);
	device_unlock(device);
	return 0;
}

static void ignore_watch(struct xenbus_watch *watch, const char *path,
			 const char *token)
{
}

static void __exit xen_vusb_resume_exit(void)
{
	struct xenbus_watch flush = {
		.node = "device/vusb",
		.callback = ignore_watch,
	};

	smp_store_release(&vusb->resume, NULL);
	smp_store_release(&vusb->otherend_changed, stock_otherend_changed);
	/*
	 * The watch thread may be in our handler. Unregistering a watch waits for the callback
	 * that is running, whichever watch it is for.
	 */
	if (!register_xenbus_watch(&flush))
		unregister_xenbus_watch(&flush);
	for_each_controller(withdraw);
	module_put(vusb->driver.owner);
	xenbus_unregister_driver(&probe_driver);
}

module_init(xen_vusb_resume_init);
module_exit(xen_vusb_resume_exit);

MODULE_DESCRIPTION("Lets xen-hcd reconnect inside its resume callback");
MODULE_AUTHOR("The xen-vusb authors");
MODULE_LICENSE("GPL v2");
