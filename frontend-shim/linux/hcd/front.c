// SPDX-License-Identifier: GPL-2.0
/*
 * xen-vusb-hcd: the life of a controller on the xenbus.
 *
 * After a live migration xenbus puts every frontend back to Initialising and calls its driver's
 * resume callback, before the devices above it resume. That is where the new rings are set up
 * and Connected is announced, without waiting for a watch: watches run in the very thread that
 * resumes. So whatever a driver of a USB device submits when it resumes goes to a living ring, and
 * waits there for as long as the new backend needs. "feature-resume" tells the backend that
 * this guest may be migrated with its devices in use.
 *
 * "feature-recall" tells it that requests are unlinked before a suspend by the controller, not by
 * their drivers (suspend.c): every answer counts, and -ESHUTDOWN is the answer to one that was cancelled.
 *
 * A cancelled suspend calls nothing here: the old rings are still served. So they are when the guest
 * has slept by itself (suspend to idle or to memory), or when its devices could not be suspended, but
 * then xenbus calls resume as if the domain had a new backend. What xenstore says of the rings tells
 * these cases apart.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/dma-mapping.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include <xen/xen.h>

#include "vusb.h"

struct workqueue_struct *vusb_workqueue;

/* No URB survives this, and none is accepted any more. */
static void vusb_kill(struct vusb *vusb)
{
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	vusb->dead = true;
	vusb_urb_give_back_all(vusb);
	spin_unlock_irqrestore(&vusb->lock, flags);
}

static int vusb_start(struct usb_hcd *hcd)
{
	hcd->state = HC_STATE_RUNNING;
	return 0;
}

static void vusb_stop(struct usb_hcd *hcd)
{
	vusb_kill(hcd_to_vusb(hcd));
	hcd->state = HC_STATE_HALT;
}

/* Eleven bits of milliseconds, as a bus has it; no bus in particular. */
static int vusb_frame_number(struct usb_hcd *hcd)
{
	return ktime_to_ms(ktime_get()) & 0x7ff;
}

#define VUSB_HC_DRIVER(version, release)					\
{										\
	.description = "xen-vusb-hcd",						\
	.product_desc = "Xen USB " release " virtual host controller",		\
	.hcd_priv_size = sizeof(struct vusb),					\
	/* URBs are given back in a tasklet. Their data is copied by the CPU. */ \
	.flags = (version) | HCD_BH,						\
	.start = vusb_start,							\
	.stop = vusb_stop,							\
	.urb_enqueue = vusb_urb_enqueue,					\
	.urb_dequeue = vusb_urb_dequeue,					\
	.endpoint_disable = vusb_endpoint_disable,				\
	.get_frame_number = vusb_frame_number,					\
	.hub_status_data = vusb_hub_status_data,				\
	.hub_control = vusb_hub_control,					\
	.bus_suspend = vusb_hub_suspend,					\
	.bus_resume = vusb_hub_resume,						\
}

static const struct hc_driver vusb_usb11 = VUSB_HC_DRIVER(HCD_USB11, "1.1");
static const struct hc_driver vusb_usb20 = VUSB_HC_DRIVER(HCD_USB2, "2.0");

static int read_backend(struct xenbus_device *dev, const char *node, unsigned int *value)
{
	int found = xenbus_scanf(XBT_NIL, dev->otherend, node, "%u", value);

	return found == 1 ? 0 : found < 0 ? found : -EINVAL;
}

static void vusb_put(struct usb_hcd *hcd)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	struct device *dev = &vusb->xbdev->dev;

	if (dev->dma_parms == &vusb->dma_parms)
		dev->dma_parms = NULL;
	usb_put_hcd(hcd);
}

static struct usb_hcd *vusb_create(struct xenbus_device *dev)
{
	unsigned int i, ports, version;
	struct usb_hcd *hcd;
	struct vusb *vusb;
	int err;

	err = read_backend(dev, "num-ports", &ports);
	if (!err)
		err = read_backend(dev, "usb-ver", &version);
	if (err) {
		xenbus_dev_fatal(dev, err, "reading num-ports and usb-ver");
		return NULL;
	}
	if (ports < 1 || ports > XENUSB_MAX_PORTNR ||
	    (version != XENUSB_VER_USB11 && version != XENUSB_VER_USB20)) {
		xenbus_dev_fatal(dev, -EINVAL, "num-ports=%u usb-ver=%u", ports, version);
		return NULL;
	}

	hcd = usb_create_hcd(version == XENUSB_VER_USB11 ? &vusb_usb11 : &vusb_usb20, &dev->dev,
			     dev_name(&dev->dev));
	if (!hcd) {
		xenbus_dev_fatal(dev, -ENOMEM, "allocating the controller");
		return NULL;
	}
	hcd->uses_new_polling = 1;
	hcd->skip_phy_initialization = 1;
	/* Low- and full-speed devices are plugged right into a USB 2.0 controller. */
	hcd->has_tt = version == XENUSB_VER_USB20;
	hcd->self.sg_tablesize = VUSB_SG_ENTRIES;
	hcd->self.no_sg_constraint = 1;
	/*
	 * Nothing is mapped for DMA, but drivers that want memory for it (uvcvideo) ask with the
	 * controller's device, and the xenbus has not prepared it for that.
	 */
	dma_coerce_mask_and_coherent(&dev->dev, DMA_BIT_MASK(64));

	vusb = hcd_to_vusb(hcd);
	if (!dev->dev.dma_parms)
		dev->dev.dma_parms = &vusb->dma_parms;
	vusb->xbdev = dev;
	vusb->n_ports = ports;
	vusb->usb11 = version == XENUSB_VER_USB11;
	vusb->urb_ring_ref = INVALID_GRANT_REF;
	vusb->conn_ring_ref = INVALID_GRANT_REF;
	spin_lock_init(&vusb->lock);
	init_waitqueue_head(&vusb->quiet);
	INIT_LIST_HEAD(&vusb->ready);
	INIT_LIST_HEAD(&vusb->unlinks);
	INIT_WORK(&vusb->report, vusb_report_violation);
	INIT_WORK(&vusb->thawed, vusb_thawed);
	for (i = 0; i < VUSB_SLOTS; i++)
		INIT_LIST_HEAD(&vusb->slots[i].unlink);

	err = vusb_pool_init(vusb);
	if (err) {
		xenbus_dev_fatal(dev, err, "reserving pages and grant references");
		vusb_pool_free(vusb);
		vusb_put(hcd);
		return NULL;
	}
	return hcd;
}

/* What the backend needs to know. It reads it when it sees us Connected. */
struct node {
	const char *name;
	unsigned int value;
};

#define VUSB_NODES	5

static void vusb_nodes(const struct vusb *vusb, struct node *nodes)
{
	nodes[0] = (struct node){ "urb-ring-ref", vusb->urb_ring_ref };
	nodes[1] = (struct node){ "conn-ring-ref", vusb->conn_ring_ref };
	nodes[2] = (struct node){ "event-channel", vusb->evtchn };
	nodes[3] = (struct node){ "feature-resume", 1 };
	nodes[4] = (struct node){ "feature-recall", 1 };
}

static int vusb_publish(struct vusb *vusb)
{
	struct node nodes[VUSB_NODES];
	unsigned int i;
	int err;

	vusb_nodes(vusb, nodes);
	for (i = 0; i < VUSB_NODES; i++) {
		err = xenbus_printf(XBT_NIL, vusb->xbdev->nodename, nodes[i].name, "%u",
				    nodes[i].value);
		if (err)
			return err;
	}
	return 0;
}

/* Xenstore names our rings: its directory is the one that we wrote to, as it is not after a migration. */
static bool vusb_is_published(const struct vusb *vusb)
{
	struct node nodes[VUSB_NODES];
	unsigned int i, value;

	vusb_nodes(vusb, nodes);
	for (i = 0; i < VUSB_NODES; i++) {
		if (xenbus_scanf(XBT_NIL, vusb->xbdev->nodename, nodes[i].name, "%u",
				 &value) != 1 ||
		    value != nodes[i].value)
			return false;
	}
	return true;
}

static void vusb_free(struct usb_hcd *hcd)
{
	struct vusb *vusb = hcd_to_vusb(hcd);

	vusb_rings_teardown(vusb);
	vusb_pool_free(vusb);
	vusb_put(hcd);
}

/* A controller that there was not before. */
static int connect_new(struct xenbus_device *dev)
{
	struct usb_hcd *hcd = vusb_create(dev);
	struct vusb *vusb;
	int err;

	/* Reported already. */
	if (!hcd)
		return -EINVAL;
	vusb = hcd_to_vusb(hcd);

	err = vusb_rings_setup(vusb);
	if (!err)
		err = vusb_publish(vusb);
	if (!err)
		err = usb_add_hcd(hcd, 0, 0);
	if (err) {
		xenbus_dev_fatal(dev, err, "setting up the controller");
		vusb_free(hcd);
		return err;
	}
	dev_set_drvdata(&dev->dev, hcd);
	return 0;
}

/* A controller that was suspended with its domain. */
static int connect_again(struct usb_hcd *hcd)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	int err;

	if (vusb->dead) {
		/* The devices have been taken away from the guest. Closes when the backend does. */
		xenbus_switch_state(vusb->xbdev, XenbusStateClosing);
		return -ESHUTDOWN;
	}
	err = vusb_rings_setup(vusb);
	if (!err)
		err = vusb_publish(vusb);
	if (err) {
		vusb_kill(vusb);
		usb_hc_died(hcd);
		xenbus_dev_fatal(vusb->xbdev, err, "setting up the rings again");
	}
	return err;
}

static void vusb_connect(struct xenbus_device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(&dev->dev);
	int err;

	if (hcd)
		err = connect_again(hcd);
	else
		err = connect_new(dev);
	if (!err)
		xenbus_switch_state(dev, XenbusStateConnected);
}

static void vusb_close(struct xenbus_device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(&dev->dev);
	struct vusb *vusb;

	if (!hcd)
		return;
	vusb = hcd_to_vusb(hcd);

	/* First the URBs: the USB core waits for them, and the backend may be gone. */
	vusb_rings_teardown(vusb);
	vusb_kill(vusb);
	cancel_work_sync(&vusb->thawed);
	usb_remove_hcd(hcd);
	dev_set_drvdata(&dev->dev, NULL);
	vusb_free(hcd);
}

static void vusb_backend_changed(struct xenbus_device *dev, enum xenbus_state state)
{
	switch (state) {
	case XenbusStateInitWait:
		/* It has come back after both sides had closed. */
		if (dev->state == XenbusStateClosed)
			xenbus_switch_state(dev, XenbusStateInitialising);
		fallthrough;
	case XenbusStateInitialised:
	case XenbusStateConnected:
		if (dev->state == XenbusStateInitialising)
			vusb_connect(dev);
		break;

	case XenbusStateClosed:
		/* Initialising: it has yet to see that we begin anew. */
		if (dev->state == XenbusStateClosed || dev->state == XenbusStateInitialising)
			break;
		fallthrough;
	case XenbusStateClosing:
		vusb_close(dev);
		xenbus_frontend_closed(dev);
		break;

	default:
		break;
	}
}

/* The backend in this state serves our rings, or did until it began to close them. */
static bool vusb_has_its_backend(const struct vusb *vusb, unsigned int state)
{
	switch (state) {
	case XenbusStateConnected:
	case XenbusStateClosing:
	case XenbusStateClosed:
		/* Of a system that was switched off, the pages are not those that were granted. */
		return vusb->connected && !vusb->dead && !vusb_hibernated() &&
		       vusb_is_published(vusb);
	default:
		return false;
	}
}

static int vusb_resume(struct xenbus_device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(&dev->dev);
	unsigned int state = XenbusStateUnknown;
	struct vusb *vusb;
	unsigned long flags;
	unsigned int noio;

	if (!hcd)
		return 0;
	vusb = hcd_to_vusb(hcd);

	if (read_backend(dev, "state", &state))
		state = XenbusStateUnknown;
	if (vusb_has_its_backend(vusb, state)) {
		/* As it was, and as xenstore has it. If the backend has closed, the watch says so. */
		dev->state = XenbusStateConnected;
		vusb_let_go(vusb);
		return 0;
	}

	/* The other ends of these went with the old host. Their pages did not. */
	vusb_rings_teardown(vusb);
	spin_lock_irqsave(&vusb->lock, flags);
	vusb_urb_forget_sent(vusb, -EPROTO);
	vusb->held = false;
	spin_unlock_irqrestore(&vusb->lock, flags);

	/* xl lets a domain run only when its backends wait for it; others may not. */
	if (state == XenbusStateInitWait || state == XenbusStateInitialised) {
		/* Memory must not be made free by writing to a disk that we are about to resume. */
		noio = memalloc_noio_save();
		vusb_connect(dev);
		memalloc_noio_restore(noio);
	} else if (state == XenbusStateConnected || vusb->dead) {
		/* To rings of somebody before us. It has to close those; then a new controller begins. */
		vusb_kill(vusb);
		usb_hc_died(hcd);
		xenbus_switch_state(dev, XenbusStateClosing);
	} else {
		dev_info(&dev->dev, "the backend is in state %u, URBs wait for it\n", state);
	}
	return 0;
}

static int vusb_probe(struct xenbus_device *dev, const struct xenbus_device_id *id)
{
	if (usb_disabled())
		return -ENODEV;
	vusb_fault_suspend_first(&dev->dev);
	/* Another driver, or this one, had it before. */
	if (dev->state != XenbusStateInitialising)
		return xenbus_switch_state(dev, XenbusStateInitialising);
	return 0;
}

static void vusb_remove(struct xenbus_device *dev)
{
	vusb_close(dev);
}

static const struct xenbus_device_id vusb_ids[] = {
	{ "vusb" },
	{ "" },
};

static struct xenbus_driver vusb_driver = {
	/* Not the default, "vusb": that is the stock driver's. */
	.name = "xen-vusb-hcd",
	.ids = vusb_ids,
	.probe = vusb_probe,
	.remove = vusb_remove,
	.otherend_changed = vusb_backend_changed,
	.suspend = vusb_suspend,
	.resume = vusb_resume,
	.driver.pm = &vusb_pm_ops,
	/* Nothing waits for it at boot. */
	.not_essential = true,
};

static int __init vusb_init(void)
{
	int err;

	if (!xen_domain())
		return -ENODEV;
	/* Its thread is there already when the memory to make one is what a disk of ours waits for. */
	vusb_workqueue = alloc_workqueue("xen-vusb-hcd", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!vusb_workqueue)
		return -ENOMEM;
	err = vusb_faults_init();
	if (err)
		goto fail_faults;
	err = vusb_suspend_init();
	if (err)
		goto fail_suspend;
	err = xenbus_register_frontend(&vusb_driver);
	if (err)
		goto fail_driver;
	if (driver_find("vusb", vusb_driver.driver.bus))
		pr_notice("xen-hcd is loaded too: controllers that it drives stay with it\n");
	return 0;

fail_driver:
	vusb_suspend_exit();
fail_suspend:
	vusb_faults_exit();
fail_faults:
	destroy_workqueue(vusb_workqueue);
	return err;
}
module_init(vusb_init);

static void __exit vusb_exit(void)
{
	xenbus_unregister_driver(&vusb_driver);
	vusb_suspend_exit();
	vusb_faults_exit();
	destroy_workqueue(vusb_workqueue);
}
module_exit(vusb_exit);

MODULE_ALIAS("xen:vusb");
MODULE_DESCRIPTION("Xen virtual USB host controller that survives live migration");
MODULE_AUTHOR("The xen-vusb authors");
MODULE_LICENSE("GPL");
