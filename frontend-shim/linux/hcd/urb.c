// SPDX-License-Identifier: GPL-2.0
/*
 * URBs: waiting, sent, unlinked, given back.
 *
 * The ring has 16 slots for all devices of a controller, and a request for input may stay in one
 * for ever. So URBs wait in a queue of their endpoint, in order, and endpoints take turns; what
 * may have one of the last free slots is in slots_needed(). One is kept for unlinking: whatever the
 * devices do, everything can be cancelled.
 *
 * An URB that is larger than a request can be is sent in parts. Isochronous ones are sent at
 * once; of others each part waits for the one before it, because a short or a failed transfer
 * ends the URB, and the other URBs of the endpoint wait for the last.
 *
 * URBs are given back in a tasklet of the USB core (HCD_BH), so this can be done under our lock.
 */

#include <linux/mm.h>
#include <linux/slab.h>

#include "vusb.h"

/* Slots that stay free for requests that are more urgent than the one to be sent. */
#define FREE_FOR_UNLINK		1
#define FREE_FOR_CONTROL	3
#define FREE_FOR_OTHERS		8

static bool is_isoc(const struct vusb_urb *vurb)
{
	return usb_pipeisoc(vurb->urb->pipe);
}

static bool has_unsent(const struct vusb_urb *vurb)
{
	if (is_isoc(vurb))
		return vurb->sent < (u32)vurb->urb->number_of_packets;
	return vurb->sent < vurb->urb->transfer_buffer_length || vurb->zero_packet;
}

/* There is more of the URB to be sent; also again, before those that came after it. */
static void join_queue(struct vusb *vusb, struct vusb_urb *vurb)
{
	struct vusb_endpoint *endpoint = vurb->urb->ep->hcpriv;
	struct list_head *before = endpoint->queue.prev;

	if (list_empty(&endpoint->queue))
		list_add_tail(&endpoint->node, &vusb->ready);
	while (before != &endpoint->queue &&
	       list_entry(before, struct vusb_urb, node)->order > vurb->order)
		before = before->prev;
	list_add(&vurb->node, before);
}

/* Nothing more of the URB is sent. */
static void leave_queue(struct vusb_urb *vurb)
{
	struct vusb_endpoint *endpoint = vurb->urb->ep->hcpriv;

	list_del_init(&vurb->node);
	if (list_empty(&endpoint->queue))
		list_del_init(&endpoint->node);
}

/* The USB core replaces the status of an URB that it has unlinked. */
static void give_back(struct vusb *vusb, struct vusb_urb *vurb, int status)
{
	struct usb_hcd *hcd = vusb_to_hcd(vusb);
	struct urb *urb = vurb->urb;

	usb_hcd_unlink_urb_from_ep(hcd, urb);
	urb->hcpriv = NULL;
	kfree(vurb);
	usb_hcd_giveback_urb(hcd, urb, status);
}

/* A request of the URB is over. */
static void part_over(struct vusb *vusb, struct vusb_slot *slot)
{
	struct vusb_urb *vurb = slot->vurb;
	struct vusb_endpoint *endpoint = vurb->urb->ep->hcpriv;

	endpoint->in_flight--;
	if (slot->recalled)
		endpoint->recalled--;
	vurb->in_flight--;
	vusb_part_free(vusb, slot);
	vusb_slot_put(vusb, slot);
	if (!vurb->in_flight && list_empty(&vurb->node))
		give_back(vusb, vurb, vurb->status);
}

static u32 pipe_of(struct urb *urb)
{
	static const u32 types[] = {
		[PIPE_ISOCHRONOUS] = XENUSB_PIPE_TYPE_ISOC,
		[PIPE_INTERRUPT] = XENUSB_PIPE_TYPE_INT,
		[PIPE_CONTROL] = XENUSB_PIPE_TYPE_CTRL,
		[PIPE_BULK] = XENUSB_PIPE_TYPE_BULK,
	};
	u32 pipe = types[usb_pipetype(urb->pipe)] << XENUSB_PIPE_TYPE_SHIFT;

	pipe |= usb_pipeendpoint(urb->pipe) << XENUSB_PIPE_EP_SHIFT;
	pipe |= usb_pipedevice(urb->pipe) << XENUSB_PIPE_DEV_SHIFT;
	if (usb_urb_dir_in(urb))
		pipe |= XENUSB_PIPE_DIR;
	/* On the device's own hub; for address 0, where it counts, a port of ours. */
	return pipe | (urb->dev->portnum & XENUSB_PIPE_PORT_MASK);
}

/* As much as fits into one request, from where the URB stands. */
static void choose_part(struct vusb_slot *slot, const struct vusb_urb *vurb)
{
	const struct urb *urb = vurb->urb;

	slot->offset = 0;
	slot->length = 0;
	slot->first_packet = 0;
	slot->packets = 0;

	if (is_isoc(vurb)) {
		unsigned int next = vurb->sent;

		slot->first_packet = next;
		for (; next < urb->number_of_packets && slot->packets < VUSB_ISOC_PACKETS; next++) {
			u32 length = urb->iso_frame_desc[next].length;

			if (slot->length + length > VUSB_ISOC_BYTES)
				break;
			slot->length += length;
			slot->packets++;
		}
	} else {
		slot->offset = vurb->sent;
		slot->length = min_t(u32, urb->transfer_buffer_length - vurb->sent,
				     VUSB_PART_BYTES);
	}
}

static int send_part(struct vusb *vusb, struct vusb_endpoint *endpoint, struct vusb_urb *vurb)
{
	struct urb *urb = vurb->urb;
	struct vusb_slot *slot = vusb_slot_get(vusb, VUSB_SLOT_SUBMIT);
	struct xenusb_urb_request *request = &slot->request;
	int err;

	slot->vurb = vurb;
	choose_part(slot, vurb);

	request->pipe = pipe_of(urb);
	if (urb->transfer_flags & URB_SHORT_NOT_OK)
		request->transfer_flags = XENUSB_SHORT_NOT_OK;
	switch (usb_pipetype(urb->pipe)) {
	case PIPE_CONTROL:
		memcpy(request->u.ctrl, urb->setup_packet, sizeof(request->u.ctrl));
		break;
	case PIPE_INTERRUPT:
		request->u.intr.interval = urb->interval;
		break;
	case PIPE_ISOCHRONOUS:
		request->u.isoc.interval = urb->interval;
		request->u.isoc.start_frame = urb->start_frame;
		request->u.isoc.number_of_packets = slot->packets;
		break;
	}

	err = vusb_part_fill(vusb, slot);
	if (err) {
		vusb_slot_put(vusb, slot);
		return err;
	}
	vusb_slot_queue(vusb, slot);

	vurb->in_flight++;
	endpoint->in_flight++;
	if (is_isoc(vurb)) {
		vurb->sent += slot->packets;
	} else {
		if (!slot->length)
			vurb->zero_packet = false;
		vurb->sent += slot->length;
	}
	if (!has_unsent(vurb))
		list_del_init(&vurb->node);
	return 0;
}

static void send_unlinks(struct vusb *vusb)
{
	struct vusb_slot *target, *slot;

	while (vusb->slots_used < VUSB_SLOTS) {
		target = list_first_entry_or_null(&vusb->unlinks, struct vusb_slot, unlink);
		if (!target)
			return;
		list_del_init(&target->unlink);
		slot = vusb_slot_get(vusb, VUSB_SLOT_UNLINK);
		slot->request.pipe = target->request.pipe | XENUSB_PIPE_UNLINK;
		slot->request.u.unlink.unlink_id = target->request.id;
		vusb_slot_queue(vusb, slot);
	}
}

/* How many slots must be free for the next part of this URB to be sent. */
static unsigned int slots_needed(const struct vusb_endpoint *endpoint, const struct vusb_urb *vurb)
{
	switch (usb_pipetype(vurb->urb->pipe)) {
	case PIPE_CONTROL:
		return FREE_FOR_UNLINK + 1;
	case PIPE_ISOCHRONOUS:
		/* Any number: they end by themselves. */
		return FREE_FOR_CONTROL + 1;
	default:
		/* These may wait for the device: one per endpoint first, then what is left. */
		return (endpoint->in_flight ? FREE_FOR_OTHERS : FREE_FOR_CONTROL) + 1;
	}
}

static bool may_send(const struct vusb *vusb, const struct vusb_endpoint *endpoint,
		     const struct vusb_urb *vurb)
{
	/* What is on its way back may have to be sent again, before this. */
	if (endpoint->recalled)
		return false;
	if (VUSB_SLOTS - vusb->slots_used < slots_needed(endpoint, vurb))
		return false;
	return is_isoc(vurb) || !vurb->in_flight;
}

/* Each endpoint sends at most one request. True: one of them did. */
static bool send_round(struct vusb *vusb)
{
	struct vusb_endpoint *endpoint;
	struct vusb_urb *vurb;
	LIST_HEAD(round);
	LIST_HEAD(served);
	bool sent = false;

	list_splice_init(&vusb->ready, &round);
	while (!list_empty(&round)) {
		endpoint = list_first_entry(&round, struct vusb_endpoint, node);
		vurb = list_first_entry(&endpoint->queue, struct vusb_urb, node);

		if (!may_send(vusb, endpoint, vurb)) {
			list_move_tail(&endpoint->node, &vusb->ready);
		} else if (send_part(vusb, endpoint, vurb)) {
			/* No memory for bounce pages, or no grant references. */
			vusb_pool_refill(vusb);
			list_move_tail(&endpoint->node, &vusb->ready);
		} else {
			sent = true;
			if (list_empty(&endpoint->queue))
				list_del_init(&endpoint->node);
			else
				list_move_tail(&endpoint->node, &served);
		}
	}
	/* Those that could not are first next time. */
	list_splice_tail(&served, &vusb->ready);
	return sent;
}

/* Sends what can be sent. Called whenever there is something new to send, or room for it. */
void vusb_urb_send(struct vusb *vusb)
{
	lockdep_assert_held(&vusb->lock);

	if (!vusb->connected || vusb->dead)
		return;
	send_unlinks(vusb);
	while (!vusb->held && send_round(vusb))
		;
	vusb_ring_publish(vusb);
}

static struct vusb_endpoint *new_endpoint(gfp_t mem_flags)
{
	struct vusb_endpoint *endpoint = kzalloc(sizeof(*endpoint), mem_flags);

	if (endpoint) {
		INIT_LIST_HEAD(&endpoint->node);
		INIT_LIST_HEAD(&endpoint->queue);
	}
	return endpoint;
}

int vusb_urb_enqueue(struct usb_hcd *hcd, struct urb *urb, gfp_t mem_flags)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	struct vusb_endpoint *unused = NULL;
	struct vusb_urb *vurb;
	unsigned long flags;
	u32 length = urb->transfer_buffer_length;
	u32 packet = usb_endpoint_maxp(&urb->ep->desc);
	int err;

	if (!vusb_part_valid(urb))
		return -EMSGSIZE;

	vurb = kzalloc(sizeof(*vurb), mem_flags);
	if (!vurb)
		return -ENOMEM;
	vurb->urb = urb;
	/* The ring has no flag for it: it is a request of its own. */
	vurb->zero_packet = (urb->transfer_flags & URB_ZERO_PACKET) && usb_urb_dir_out(urb) &&
			    usb_pipebulk(urb->pipe) && length && packet && length % packet == 0;

	vusb_fault_delay(mem_flags);
	spin_lock_irqsave(&vusb->lock, flags);
	/*
	 * Read under the lock: until the URB is linked, the USB core does not wait for it, and may
	 * disable and enable the endpoint meanwhile, for example to reset the device.
	 */
	while (!urb->ep->hcpriv && !unused) {
		spin_unlock_irqrestore(&vusb->lock, flags);
		unused = new_endpoint(mem_flags);
		if (!unused) {
			kfree(vurb);
			return -ENOMEM;
		}
		vusb_fault_delay(mem_flags);
		spin_lock_irqsave(&vusb->lock, flags);
	}
	if (vusb->dead) {
		err = -ESHUTDOWN;
		goto fail;
	}
	err = usb_hcd_link_urb_to_ep(hcd, urb);
	if (err)
		goto fail;

	if (!urb->ep->hcpriv) {
		urb->ep->hcpriv = unused;
		unused = NULL;
	}
	urb->hcpriv = vurb;
	urb->error_count = 0;
	vurb->order = vusb->urbs++;
	INIT_LIST_HEAD(&vurb->node);
	join_queue(vusb, vurb);
	vusb_urb_send(vusb);
	spin_unlock_irqrestore(&vusb->lock, flags);

	kfree(unused);
	return 0;

fail:
	spin_unlock_irqrestore(&vusb->lock, flags);
	kfree(unused);
	kfree(vurb);
	return err;
}

int vusb_urb_dequeue(struct usb_hcd *hcd, struct urb *urb, int status)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	struct vusb_urb *vurb;
	unsigned long flags;
	unsigned int i;
	int err;

	spin_lock_irqsave(&vusb->lock, flags);
	err = usb_hcd_check_unlink_urb(hcd, urb, status);
	if (err)
		goto out;

	vurb = urb->hcpriv;
	vurb->cancelled = true;
	if (!list_empty(&vurb->node))
		leave_queue(vurb);
	if (!vurb->in_flight) {
		give_back(vusb, vurb, status);
		goto out;
	}

	/* It is given back when every request of it has been answered. */
	for (i = 0; i < VUSB_SLOTS; i++) {
		struct vusb_slot *slot = &vusb->slots[i];

		if (slot->state == VUSB_SLOT_SUBMIT && slot->vurb == vurb)
			vusb_slot_unlink(vusb, slot);
	}
	vusb_urb_send(vusb);
out:
	spin_unlock_irqrestore(&vusb->lock, flags);
	return err;
}

/* The USB core has taken back every URB of the endpoint before it calls this. */
void vusb_endpoint_disable(struct usb_hcd *hcd, struct usb_host_endpoint *ep)
{
	struct vusb *vusb = hcd_to_vusb(hcd);
	struct vusb_endpoint *endpoint;
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	endpoint = ep->hcpriv;
	if (endpoint && !WARN_ON_ONCE(endpoint->in_flight || !list_empty(&endpoint->queue)))
		ep->hcpriv = NULL;
	else
		endpoint = NULL;
	spin_unlock_irqrestore(&vusb->lock, flags);
	kfree(endpoint);
}

static int status_of(s32 status)
{
	switch (status) {
	case XENUSB_STATUS_OK:
		return 0;
	case XENUSB_STATUS_NODEV:
		return -ENODEV;
	case XENUSB_STATUS_INVAL:
		return -EINVAL;
	case XENUSB_STATUS_STALL:
		return -EPIPE;
	case XENUSB_STATUS_IOERROR:
		return -EPROTO;
	case XENUSB_STATUS_BABBLE:
		return -EOVERFLOW;
	default:
		return -ESHUTDOWN;
	}
}

/*
 * A request that was taken back for a suspend was cancelled, after actual bytes or ran packets. Goes
 * on with the URB from there when the time comes. False: this cannot be sent in halves.
 */
static bool send_again(struct vusb *vusb, struct vusb_slot *slot, u32 actual, unsigned int ran)
{
	struct vusb_urb *vurb = slot->vurb;
	struct urb *urb = vurb->urb;
	u32 packet = usb_endpoint_maxp(&urb->ep->desc);

	switch (usb_pipetype(urb->pipe)) {
	case PIPE_CONTROL:
		/* Who knows whether the device has acted on it. */
		return false;
	case PIPE_ISOCHRONOUS:
		vurb->sent = min_t(u32, vurb->sent, slot->first_packet + ran);
		/* All had run, just then. */
		if (!has_unsent(vurb))
			return false;
		break;
	default:
		/* So had this: all of it, or a short packet came. */
		if (slot->length && (actual == slot->length ||
				     (usb_urb_dir_in(urb) && packet && actual % packet)))
			return false;
		vurb->sent = slot->offset + actual;
		/* Of an URB with data, this was the packet that ends it. */
		vurb->zero_packet |= !slot->length && urb->transfer_buffer_length;
	}
	if (list_empty(&vurb->node))
		join_queue(vusb, vurb);
	return true;
}

/* The backend has answered a request for an URB; slot is its. */
void vusb_urb_answered(struct vusb *vusb, struct vusb_slot *slot,
		       const struct xenusb_urb_response *response)
{
	struct vusb_urb *vurb = slot->vurb;
	struct urb *urb = vurb->urb;
	int status = status_of(response->status);
	u32 actual = response->actual_length;
	bool over = vurb->cancelled;
	/* Only what was unlinked is answered so. */
	bool taken_back = slot->recalled && !over && response->status == XENUSB_STATUS_SHUTDOWN;
	unsigned int ran = slot->packets;

	if (!vusb_part_revoke(vusb, slot)) {
		vusb_violation(vusb, "did not let go of the pages of a request that it answered");
		actual = 0;
		status = -EPROTO;
		over = true;
		taken_back = false;
	} else if (is_isoc(vurb)) {
		if (taken_back)
			ran = vusb_part_isoc_ran(slot);
		vusb_part_isoc_results(slot, ran);
		if (!slot->first_packet && ran)
			urb->start_frame = response->start_frame;
	} else {
		if (actual > slot->length) {
			dev_warn_ratelimited(&vusb->xbdev->dev, "%u bytes in a buffer of %u\n",
					     actual, slot->length);
			actual = slot->length;
			status = status ? status : -EOVERFLOW;
			taken_back = false;
		}
		vusb_part_copy_back(slot, actual);
		urb->actual_length += actual;
		over |= actual < slot->length;
	}

	if (taken_back) {
		if (send_again(vusb, slot, actual, ran)) {
			part_over(vusb, slot);
			return;
		}
		status = usb_pipecontrol(urb->pipe) ? -EPROTO : 0;
	}
	if (status && !vurb->status)
		vurb->status = status;
	if ((status || over) && !list_empty(&vurb->node))
		leave_queue(vurb);
	part_over(vusb, slot);
}

/*
 * Gives up every request on the ring. All were taken back before the domain was suspended; if one
 * is here after the suspend nevertheless, nobody knows whether the device has seen it, and its
 * driver must decide. URBs that are to be sent stay in their queues.
 */
void vusb_urb_forget_sent(struct vusb *vusb, int status)
{
	unsigned int i;

	lockdep_assert_held(&vusb->lock);

	for (i = 0; i < VUSB_SLOTS; i++) {
		struct vusb_slot *slot = &vusb->slots[i];
		struct vusb_urb *vurb = slot->vurb;

		switch (slot->state) {
		case VUSB_SLOT_FREE:
			break;
		case VUSB_SLOT_UNLINK:
			vusb_slot_put(vusb, slot);
			break;
		case VUSB_SLOT_SUBMIT:
			vusb_part_revoke(vusb, slot);
			if (!vurb->status)
				vurb->status = status;
			if (!list_empty(&vurb->node))
				leave_queue(vurb);
			part_over(vusb, slot);
			break;
		}
	}
}

/* The controller is dead. Nothing may be enqueued any more: vusb->dead is set. */
void vusb_urb_give_back_all(struct vusb *vusb)
{
	struct vusb_endpoint *endpoint;
	struct vusb_urb *vurb;

	vusb_urb_forget_sent(vusb, -ESHUTDOWN);
	while (!list_empty(&vusb->ready)) {
		endpoint = list_first_entry(&vusb->ready, struct vusb_endpoint, node);
		vurb = list_first_entry(&endpoint->queue, struct vusb_urb, node);
		leave_queue(vurb);
		give_back(vusb, vurb, -ESHUTDOWN);
	}
}
