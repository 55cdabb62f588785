// SPDX-License-Identifier: GPL-2.0
/*
 * The virtual root hub (USB 2.0, chapter 11.24).
 *
 * Ports have no hardware: a reset or a resume ends when somebody asks for the port's status after
 * the time that the specification gives it. The backend knows nothing of it; it resets the device
 * when a request to address 0 of the port follows.
 */

#include <linux/jiffies.h>

#include "vusb.h"

/* TDRSTR of a root port is 50 ms; the USB core waits as long as it needs by itself. */
#define VUSB_RESET_MS	10
#define VUSB_RESUME_MS	20

#define VUSB_SPEED_BITS	(USB_PORT_STAT_LOW_SPEED | USB_PORT_STAT_HIGH_SPEED)

/* Shows on a powered port what is plugged in. */
static void port_show_device(struct vusb_port *port)
{
	port->status &= ~VUSB_SPEED_BITS;
	switch (port->speed) {
	case XENUSB_SPEED_NONE:
		port->status &= ~USB_PORT_STAT_CONNECTION;
		return;
	case XENUSB_SPEED_LOW:
		port->status |= USB_PORT_STAT_LOW_SPEED;
		break;
	case XENUSB_SPEED_HIGH:
		port->status |= USB_PORT_STAT_HIGH_SPEED;
		break;
	}
	port->status |= USB_PORT_STAT_CONNECTION;
}

/*
 * The backend says what is plugged into a port. An unchanged speed is no event: after a migration
 * the new backend repeats what the device on the port was all along.
 *
 * Returns an error when the backend may not say this.
 */
int vusb_hub_event(struct vusb *vusb, u8 number, u8 speed, bool *changed)
{
	struct vusb_port *port;

	if (number < 1 || number > vusb->n_ports || speed > XENUSB_SPEED_HIGH)
		return -EINVAL;

	if (vusb->usb11 && speed == XENUSB_SPEED_HIGH) {
		dev_err(&vusb->xbdev->dev, "high-speed device on port %u of a USB 1.1 controller\n",
			number);
		speed = XENUSB_SPEED_NONE;
	}

	port = &vusb->ports[number - 1];
	if (port->speed == speed)
		return 0;
	port->speed = speed;

	if (port->status & USB_PORT_STAT_POWER) {
		/* Another device, even if one was there before. */
		port->status &= ~(USB_PORT_STAT_ENABLE | USB_PORT_STAT_SUSPEND);
		port->resuming = false;
		port_show_device(port);
		port->change |= USB_PORT_STAT_C_CONNECTION;
		*changed = true;
	}
	return 0;
}

static void port_power_on(struct vusb_port *port)
{
	if (port->status & USB_PORT_STAT_POWER)
		return;
	port->status |= USB_PORT_STAT_POWER;
	if (port->speed != XENUSB_SPEED_NONE) {
		port_show_device(port);
		port->change |= USB_PORT_STAT_C_CONNECTION;
	}
}

static void port_power_off(struct vusb_port *port)
{
	port->status = 0;
	port->change = 0;
	port->resuming = false;
}

static void port_disable(struct vusb_port *port)
{
	port->status &= ~(USB_PORT_STAT_ENABLE | USB_PORT_STAT_SUSPEND);
	port->resuming = false;
}

static int port_reset(struct vusb_port *port)
{
	if (!(port->status & USB_PORT_STAT_POWER))
		return -EPIPE;
	port_disable(port);
	port->status |= USB_PORT_STAT_RESET;
	port->settled = jiffies + msecs_to_jiffies(VUSB_RESET_MS);
	return 0;
}

static void port_resume(struct vusb_port *port)
{
	if (!(port->status & USB_PORT_STAT_SUSPEND) || port->resuming)
		return;
	port->resuming = true;
	port->settled = jiffies + msecs_to_jiffies(VUSB_RESUME_MS);
}

/* Ends a reset or a resume whose time is over. */
static void port_settle(struct vusb_port *port)
{
	if (!(port->status & USB_PORT_STAT_RESET) && !port->resuming)
		return;
	if (time_before(jiffies, port->settled))
		return;

	if (port->resuming) {
		port->resuming = false;
		port->status &= ~USB_PORT_STAT_SUSPEND;
		port->change |= USB_PORT_STAT_C_SUSPEND;
	}
	if (port->status & USB_PORT_STAT_RESET) {
		port->status &= ~USB_PORT_STAT_RESET;
		port->change |= USB_PORT_STAT_C_RESET;
		port_show_device(port);
		if (port->status & USB_PORT_STAT_CONNECTION)
			port->status |= USB_PORT_STAT_ENABLE;
	}
}

/*
 * The ring protocol has no remote wake-up: the backend could not tell that the device behind a
 * suspended port has something to say. A device that shall be able to wake us up stays awake.
 */
static bool child_may_wake_us(struct usb_hcd *hcd, u16 port)
{
	struct usb_device *child = usb_hub_find_child(hcd->self.root_hub, port);

	/* Called by the USB core on behalf of this very child. */
	return child && child->do_remote_wakeup;
}

static int set_port_feature(struct vusb_port *port, u16 feature, bool may_wake_us)
{
	switch (feature) {
	case USB_PORT_FEAT_POWER:
		port_power_on(port);
		return 0;
	case USB_PORT_FEAT_RESET:
		return port_reset(port);
	case USB_PORT_FEAT_SUSPEND:
		if (may_wake_us || !(port->status & USB_PORT_STAT_ENABLE))
			return -EPIPE;
		port->status |= USB_PORT_STAT_SUSPEND;
		return 0;
	default:
		return -EPIPE;
	}
}

static int clear_port_feature(struct vusb_port *port, u16 feature)
{
	switch (feature) {
	case USB_PORT_FEAT_POWER:
		port_power_off(port);
		return 0;
	case USB_PORT_FEAT_ENABLE:
		port_disable(port);
		return 0;
	case USB_PORT_FEAT_SUSPEND:
		port_resume(port);
		return 0;
	case USB_PORT_FEAT_C_CONNECTION:
	case USB_PORT_FEAT_C_ENABLE:
	case USB_PORT_FEAT_C_SUSPEND:
	case USB_PORT_FEAT_C_OVER_CURRENT:
	case USB_PORT_FEAT_C_RESET:
		port->change &= ~BIT(feature - USB_PORT_FEAT_C_CONNECTION);
		return 0;
	default:
		return -EPIPE;
	}
}

static void hub_descriptor(struct vusb *vusb, struct usb_hub_descriptor *desc)
{
	unsigned int bitmap = vusb->n_ports / 8 + 1;

	desc->bDescLength = USB_DT_HUB_NONVAR_SIZE + 2 * bitmap;
	desc->bDescriptorType = USB_DT_HUB;
	desc->bNbrPorts = vusb->n_ports;
	desc->wHubCharacteristics = cpu_to_le16(HUB_CHAR_INDV_PORT_LPSM | HUB_CHAR_INDV_PORT_OCPM);
	desc->bPwrOn2PwrGood = 0;
	desc->bHubContrCurrent = 0;
	/* Every device is removable; PortPwrCtrlMask is all ones since USB 1.1. */
	memset(desc->u.hs.DeviceRemovable, 0, bitmap);
	memset(desc->u.hs.DeviceRemovable + bitmap, 0xff, bitmap);
}

int vusb_hub_control(struct usb_hcd *hcd, u16 request, u16 value, u16 index, char *buf,
		     u16 length)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	struct vusb_port *port = NULL;
	bool changed, may_wake_us = false;
	unsigned long flags;
	int err = 0;

	switch (request) {
	case SetPortFeature:
	case ClearPortFeature:
	case GetPortStatus:
		/* The upper byte is the selector of port tests and indicators. */
		index &= 0xff;
		if (index < 1 || index > vusb->n_ports)
			return -EPIPE;
		port = &vusb->ports[index - 1];
		if (request == SetPortFeature && value == USB_PORT_FEAT_SUSPEND)
			may_wake_us = child_may_wake_us(hcd, index);
		break;
	}

	spin_lock_irqsave(&vusb->lock, flags);
	switch (request) {
	case SetPortFeature:
		err = set_port_feature(port, value, may_wake_us);
		break;
	case ClearPortFeature:
		err = clear_port_feature(port, value);
		break;
	case GetPortStatus:
		port_settle(port);
		put_unaligned_le16(port->status, buf);
		put_unaligned_le16(port->change, buf + 2);
		break;
	case GetHubDescriptor:
		hub_descriptor(vusb, (struct usb_hub_descriptor *)buf);
		break;
	case GetHubStatus:
		/* The power supply is good. */
		put_unaligned_le32(0, buf);
		break;
	case ClearHubFeature:
		if (value != C_HUB_LOCAL_POWER && value != C_HUB_OVER_CURRENT)
			err = -EPIPE;
		break;
	default:
		err = -EPIPE;
	}
	changed = port && port->change;
	spin_unlock_irqrestore(&vusb->lock, flags);

	if (changed)
		usb_hcd_poll_rh_status(hcd);
	return err;
}

/* The bitmap of changed ports (11.12.4). Returns its length, 0 when nothing changed. */
int vusb_hub_status_data(struct usb_hcd *hcd, char *buf)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	unsigned int i, bytes = vusb->n_ports / 8 + 1;
	bool changed = false;
	unsigned long flags;

	memset(buf, 0, bytes);
	spin_lock_irqsave(&vusb->lock, flags);
	for (i = 0; i < vusb->n_ports; i++) {
		if (vusb->ports[i].change) {
			buf[(i + 1) / 8] |= BIT((i + 1) % 8);
			changed = true;
		}
	}
	spin_unlock_irqrestore(&vusb->lock, flags);

	if (changed && hcd->state == HC_STATE_SUSPENDED)
		usb_hcd_resume_root_hub(hcd);
	return changed ? bytes : 0;
}

/*
 * Ports keep their status while the bus is suspended, which is what lets a domain that has been
 * migrated find its devices where they were.
 */
int vusb_hub_suspend(struct usb_hcd *hcd)
{
	return 0;
}

int vusb_hub_resume(struct usb_hcd *hcd)
{
	return 0;
}
