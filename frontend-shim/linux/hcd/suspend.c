// SPDX-License-Identifier: GPL-2.0
/*
 * A suspend of the domain by Xen, unseen by the drivers of the USB devices.
 *
 * Before such a suspend the PM core freezes every device, and a frozen USB device loses its URBs:
 * their drivers unlink them, and what arrives in that instant is gone. Nothing of that is needed
 * here. The devices do not sleep, they are merely out of reach for a moment. So the devices and
 * interfaces below the controller are hidden from the PM core (power.syscore, which it reads in
 * each of its phases and nobody else does), and the controller alone sees to the requests:
 *
 * prepare      Called before anything below is looked at: parents come first. Hides the devices.
 *              Their users (SCSI devices, inputs, sound cards) are frozen as always, and are served.
 * suspend      Sends nothing more, and asks the backend to take back every request on the ring. One
 *              that was done all the same has been done: it is given back with its data, as nobody
 *              has unlinked its URB. One that was cancelled goes back into its queue, where it stands.
 * resume       New rings, see front.c, and all that waits is sent on them.
 * thaw_early   The suspend was cancelled: all that waits is sent on the old ring. Before any user of
 *              a device is thawed, because one may wait for a transfer.
 * complete     Shows the devices again.
 * thawed       Does what is left to do where the PM core called nothing of this: when a device of the
 *              guest could not be suspended, do_suspend() of some kernels only thaws the processes.
 *              It is queued in prepare on a work queue that is frozen, so it runs when all is over.
 *
 * Requests are taken back newest first, as the USB core does it: nothing that comes later on an
 * endpoint may run when what was before it does not. Until all requests of an endpoint have been
 * answered, none is sent to it.
 *
 * A guest that sleeps or hibernates by itself is another matter: its devices are frozen as always.
 */

#include <linux/device.h>
#include <linux/suspend.h>

#include "vusb.h"

/* How long control transfers, which cannot be done in halves, have to end by themselves. */
#define VUSB_CONTROL_MS	1000
/*
 * And how long the backend has to answer. It takes seconds only when it has lost its exporter: it then
 * notices that, makes a new connection and asks again. It gives up after 10 s. An answer that
 * is waited for is worth a longer pause: without it nobody knows what the device has done.
 */
#define VUSB_ANSWER_MS	12000
/*
 * Controllers wait one after the other, and the toolstack gives up after a minute. So that time is for all
 * of them together; but this much each of them has.
 */
#define VUSB_ANSWER_MIN_MS	1000

/* How much of VUSB_ANSWER_MS is left in this suspend. Written by the task that suspends. */
static unsigned int patience_ms;

/* What the system does by itself, of which Xen knows nothing. */
static enum {
	OWN_NOTHING,
	OWN_SLEEP,
	OWN_HIBERNATION,
} own_transition;

static int on_transition(struct notifier_block *block, unsigned long event, void *unused)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		own_transition = OWN_HIBERNATION;
		break;
	case PM_SUSPEND_PREPARE:
		own_transition = OWN_SLEEP;
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
	case PM_POST_SUSPEND:
		own_transition = OWN_NOTHING;
		break;
	}
	return NOTIFY_DONE;
}

/* Xen's suspend sends none of these. */
static struct notifier_block transitions = {
	.notifier_call = on_transition,
};

int vusb_suspend_init(void)
{
	return register_pm_notifier(&transitions);
}

void vusb_suspend_exit(void)
{
	unregister_pm_notifier(&transitions);
}

/* In a resume: the memory is that of a system that was switched off since. */
bool vusb_hibernated(void)
{
	return own_transition == OWN_HIBERNATION;
}

struct hiding {
	const struct bus_type *bus;
	bool hide;
};

/* Devices, their interfaces, the devices on hubs; not what they are to other subsystems. */
static int hide(struct device *dev, void *data)
{
	struct hiding *hiding = data;

	if (dev->bus != hiding->bus)
		return 0;
	/* It shares a word with flags that are under this lock. */
	spin_lock_irq(&dev->power.lock);
	dev_pm_syscore_device(dev, hiding->hide);
	spin_unlock_irq(&dev->power.lock);
	return device_for_each_child(dev, hiding, hide);
}

static void hide_devices(struct usb_hcd *hcd, bool yes)
{
	struct device *root = &hcd->self.root_hub->dev;
	struct hiding hiding = { .bus = root->bus, .hide = yes };

	hide(root, &hiding);
}

static int vusb_pm_prepare(struct device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(dev);
	struct vusb *vusb;

	if (!hcd || own_transition)
		return 0;
	vusb = hcd_to_vusb(hcd);
	vusb->unseen = true;
	patience_ms = VUSB_ANSWER_MS;
	/* No device comes or goes until they are shown again: the USB core's work queue is frozen. */
	hide_devices(hcd, true);
	queue_work(system_freezable_wq, &vusb->thawed);
	return 0;
}

/* Sends again what waits, if it waited. */
void vusb_let_go(struct vusb *vusb)
{
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	vusb->held = false;
	vusb_urb_send(vusb);
	spin_unlock_irqrestore(&vusb->lock, flags);
}

static int vusb_pm_thaw_early(struct device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(dev);

	if (hcd)
		vusb_let_go(hcd_to_vusb(hcd));
	return 0;
}

static void show(struct vusb *vusb)
{
	if (!vusb->unseen)
		return;
	hide_devices(vusb_to_hcd(vusb), false);
	vusb->unseen = false;
	vusb_let_go(vusb);
}

/* However it ended, also where nothing was suspended because something else could not be. */
static void vusb_pm_complete(struct device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(dev);

	if (hcd)
		show(hcd_to_vusb(hcd));
}

void vusb_thawed(struct work_struct *work)
{
	struct vusb *vusb = container_of(work, struct vusb, thawed);

	if (vusb->unseen)
		dev_warn(&vusb->xbdev->dev, "a suspend was given up without a word\n");
	show(vusb);
}

const struct dev_pm_ops vusb_pm_ops = {
	.prepare = vusb_pm_prepare,
	.thaw_early = vusb_pm_thaw_early,
	.complete = vusb_pm_complete,
};

/* The newest request that is not being unlinked. */
static struct vusb_slot *newest(struct vusb *vusb, bool with_control)
{
	struct vusb_slot *found = NULL;
	unsigned int i;

	for (i = 0; i < VUSB_SLOTS; i++) {
		struct vusb_slot *slot = &vusb->slots[i];

		if (slot->state != VUSB_SLOT_SUBMIT || slot->unlinked)
			continue;
		if (usb_pipecontrol(slot->vurb->urb->pipe) && !with_control)
			continue;
		if (!found || slot->order > found->order)
			found = slot;
	}
	return found;
}

/* Asks for all requests that the backend has. */
static void recall(struct vusb *vusb, bool with_control)
{
	struct vusb_endpoint *endpoint;
	struct vusb_slot *slot;
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	vusb->held = true;
	while ((slot = newest(vusb, with_control))) {
		endpoint = slot->vurb->urb->ep->hcpriv;
		endpoint->recalled++;
		slot->recalled = true;
		vusb_slot_unlink(vusb, slot);
	}
	vusb_urb_send(vusb);
	spin_unlock_irqrestore(&vusb->lock, flags);
}

static bool is_quiet(struct vusb *vusb, unsigned int ms)
{
	return wait_event_timeout(vusb->quiet, !READ_ONCE(vusb->slots_used),
				  msecs_to_jiffies(ms));
}

int vusb_suspend(struct xenbus_device *dev)
{
	struct usb_hcd *hcd = dev_get_drvdata(&dev->dev);
	unsigned int waited_ms;
	unsigned long start;
	struct vusb *vusb;

	if (!hcd)
		return 0;
	vusb = hcd_to_vusb(hcd);
	if (!vusb->unseen)
		return 0;

	recall(vusb, false);
	if (is_quiet(vusb, VUSB_CONTROL_MS))
		return 0;
	recall(vusb, true);
	start = jiffies;
	/* What is not answered by the time of the resume is an error then: nobody knows about it. */
	if (!is_quiet(vusb, max(patience_ms, (unsigned int)VUSB_ANSWER_MIN_MS)))
		dev_warn(&dev->dev, "the backend has not answered %u requests\n",
			 READ_ONCE(vusb->slots_used));
	waited_ms = jiffies_to_msecs(jiffies - start);
	patience_ms -= min(patience_ms, waited_ms);
	return 0;
}
