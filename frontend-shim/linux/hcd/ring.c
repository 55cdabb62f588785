// SPDX-License-Identifier: GPL-2.0
/*
 * The two rings that are shared with the backend, and its event channel.
 *
 * The backend may write to the rings at any time. Its indices are read once and compared with
 * ours, which are kept outside the rings; a response is copied before it is looked at. There can
 * be no more responses than requests; a response must name a request that waits for one.
 *
 * A request's id is the number of its slot and a generation, so that it differs from those that
 * the slot had before: an answer that comes twice, or to a request of a ring that is gone, is
 * recognised. A ring shares neither page nor event channel with its predecessor, so a stale
 * answer can only reach us through a backend that writes it to the new ring, where it takes
 * the place of the answer to another request. Nothing good can follow, and the controller stops.
 */

#include <linux/interrupt.h>

#include <xen/events.h>
#include <xen/page.h>

#include "vusb.h"

#define SLOT_BITS	4
#define SLOT_MASK	(VUSB_SLOTS - 1)

/* There must be a free one. */
struct vusb_slot *vusb_slot_get(struct vusb *vusb, enum vusb_slot_state state)
{
	struct vusb_slot *slot = vusb->slots;

	while (slot->state != VUSB_SLOT_FREE)
		slot++;
	vusb->slots_used++;
	vusb->generation++;

	slot->state = state;
	slot->vurb = NULL;
	slot->order = vusb->requests++;
	slot->unlinked = false;
	slot->recalled = false;
	slot->n_segments = 0;
	INIT_LIST_HEAD(&slot->unlink);
	memset(&slot->request, 0, sizeof(slot->request));
	slot->request.id = (u16)(vusb->generation << SLOT_BITS | (slot - vusb->slots));
	return slot;
}

void vusb_slot_put(struct vusb *vusb, struct vusb_slot *slot)
{
	list_del_init(&slot->unlink);
	slot->vurb = NULL;
	slot->state = VUSB_SLOT_FREE;
	vusb->slots_used--;
	if (vusb->held && !vusb->slots_used)
		wake_up(&vusb->quiet);
}

/* An unlink for its request is sent as soon as there is a slot for it. Once is enough. */
void vusb_slot_unlink(struct vusb *vusb, struct vusb_slot *slot)
{
	if (slot->unlinked)
		return;
	slot->unlinked = true;
	list_add_tail(&slot->unlink, &vusb->unlinks);
}

/*
 * Puts a slot's request on the ring, which has room: there are as many slots as ring entries, and
 * a slot is freed when, and only when, an answer has been taken from the ring.
 */
void vusb_slot_queue(struct vusb *vusb, struct vusb_slot *slot)
{
	*RING_GET_REQUEST(&vusb->urb_ring, vusb->urb_ring.req_prod_pvt) = slot->request;
	vusb->urb_ring.req_prod_pvt++;
}

void vusb_ring_publish(struct vusb *vusb)
{
	int notify;

	if (vusb->urb_ring.sring->req_prod == vusb->urb_ring.req_prod_pvt)
		return;
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&vusb->urb_ring, notify);
	if (notify)
		notify_remote_via_irq(vusb->irq);
}

/* The backend has broken the protocol. Its controller stops as soon as the caller is done. */
void vusb_violation(struct vusb *vusb, const char *what)
{
	if (!vusb->violation)
		vusb->violation = what;
}

static void take_response(struct vusb *vusb, const struct xenusb_urb_response *response)
{
	struct vusb_slot *slot = &vusb->slots[response->id & SLOT_MASK];

	if (slot->state == VUSB_SLOT_FREE || slot->request.id != response->id)
		vusb_violation(vusb, "answered a request that does not wait for an answer");
	else if (slot->state == VUSB_SLOT_UNLINK)
		vusb_slot_put(vusb, slot);
	else
		vusb_urb_answered(vusb, slot, response);
}

/* Takes one response, if there is one. True: there is more. */
static bool take_one_response(struct vusb *vusb, unsigned int *eoi)
{
	struct xenusb_urb_front_ring *ring = &vusb->urb_ring;
	struct xenusb_urb_response response;
	RING_IDX produced = READ_ONCE(ring->sring->rsp_prod);
	int more;

	if (produced - ring->rsp_cons > ring->req_prod_pvt - ring->rsp_cons) {
		vusb_violation(vusb, "has an impossible index on the URB ring");
		return false;
	}
	/* The index before the responses. */
	virt_rmb();

	if (ring->rsp_cons != produced) {
		RING_COPY_RESPONSE(ring, ring->rsp_cons, &response);
		ring->rsp_cons++;
		*eoi = 0;
		take_response(vusb, &response);
		if (vusb->violation)
			return false;
	}
	RING_FINAL_CHECK_FOR_RESPONSES(ring, more);
	return more;
}

/* Takes connection events, and fills their places on the ring with forms for the next. */
static bool take_events(struct vusb *vusb, unsigned int *eoi, bool *changed)
{
	struct xenusb_conn_front_ring *ring = &vusb->conn_ring;
	struct xenusb_conn_response event;
	RING_IDX produced = READ_ONCE(ring->sring->rsp_prod);
	int notify, more;

	if (produced - ring->rsp_cons > ring->req_prod_pvt - ring->rsp_cons) {
		vusb_violation(vusb, "has an impossible index on the connection ring");
		return false;
	}
	virt_rmb();

	while (ring->rsp_cons != produced) {
		RING_COPY_RESPONSE(ring, ring->rsp_cons, &event);
		ring->rsp_cons++;
		*eoi = 0;
		if (vusb_hub_event(vusb, event.portnum, event.speed, changed)) {
			vusb_violation(vusb, "sent an event with an impossible port or speed");
			return false;
		}
		RING_GET_REQUEST(ring, ring->req_prod_pvt)->id = event.id;
		ring->req_prod_pvt++;
	}
	if (ring->sring->req_prod != ring->req_prod_pvt) {
		RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(ring, notify);
		if (notify)
			notify_remote_via_irq(vusb->irq);
	}
	RING_FINAL_CHECK_FOR_RESPONSES(ring, more);
	return more;
}

/*
 * One response, the connection events, and the requests for which there is room now. A response can
 * mean 64 KiB to be copied out and as much to be copied in, with interrupts off: between two of
 * them the lock is free. True: there is more.
 */
static bool serve(struct vusb *vusb, unsigned int *eoi)
{
	bool changed = false, more = false;
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	if (vusb->connected && !vusb->dead) {
		more = take_one_response(vusb, eoi);
		if (!vusb->violation)
			more |= take_events(vusb, eoi, &changed);
		if (vusb->violation) {
			vusb->dead = true;
			more = false;
			vusb_urb_give_back_all(vusb);
			schedule_work(&vusb->report);
		} else {
			vusb_urb_send(vusb);
		}
	}
	spin_unlock_irqrestore(&vusb->lock, flags);

	if (changed)
		usb_hcd_poll_rh_status(vusb_to_hcd(vusb));
	return more;
}

/*
 * Not in the thread of the interrupt: xenstore may be held by a suspend that waits for that thread.
 */
void vusb_report_violation(struct work_struct *work)
{
	struct vusb *vusb = container_of(work, struct vusb, report);
	unsigned long flags;
	const char *what;

	spin_lock_irqsave(&vusb->lock, flags);
	what = vusb->violation;
	vusb->violation = NULL;
	spin_unlock_irqrestore(&vusb->lock, flags);
	if (!what)
		return;

	usb_hc_died(vusb_to_hcd(vusb));
	/* Into the log and into xenstore; and asks the backend to close. */
	xenbus_dev_fatal(vusb->xbdev, -EPROTO, "the backend %s", what);
}

/* In a thread: up to a megabyte may have to be copied. */
static irqreturn_t vusb_interrupt(int irq, void *data)
{
	struct vusb *vusb = data;
	unsigned int eoi = XEN_EOI_FLAG_SPURIOUS;

	while (serve(vusb, &eoi))
		cond_resched();
	xen_irq_lateeoi(irq, eoi);
	return IRQ_HANDLED;
}

static int setup_irq(struct vusb *vusb)
{
	struct xenbus_device *dev = vusb->xbdev;
	int irq, err;

	err = xenbus_alloc_evtchn(dev, &vusb->evtchn);
	if (err)
		return err;
	irq = bind_evtchn_to_irq_lateeoi(vusb->evtchn);
	if (irq < 0) {
		xenbus_free_evtchn(dev, vusb->evtchn);
		return irq;
	}
	err = request_threaded_irq(irq, NULL, vusb_interrupt, IRQF_ONESHOT, dev_name(&dev->dev),
				   vusb);
	/* Also frees an irq that has no handler, with a warning: rare enough. */
	if (err)
		unbind_from_irqhandler(irq, vusb);
	else
		vusb->irq = irq;
	return err;
}

/* A page shared with the backend. */
static int setup_page(struct vusb *vusb, void **ring, grant_ref_t *ref)
{
	struct page *page = alloc_page(GFP_NOIO | __GFP_HIGH | __GFP_ZERO);
	int granted;

	if (!page)
		return -ENOMEM;
	granted = gnttab_grant_foreign_access(vusb->xbdev->otherend_id, xen_page_to_gfn(page), 0);
	if (granted < 0) {
		__free_page(page);
		return granted;
	}
	*ring = page_address(page);
	*ref = granted;
	return 0;
}

/* The page is freed when the backend has unmapped it; xenbus_teardown_ring() would not wait. */
static void teardown_page(void *ring, grant_ref_t *ref)
{
	if (*ref != INVALID_GRANT_REF)
		gnttab_end_foreign_access(*ref, virt_to_page(ring));
	*ref = INVALID_GRANT_REF;
}

/* Fresh rings, a fresh event channel. The backend is not told yet. */
int vusb_rings_setup(struct vusb *vusb)
{
	unsigned long flags;
	unsigned int i;
	void *page;
	int err;

	err = setup_page(vusb, &page, &vusb->urb_ring_ref);
	if (err)
		return err;
	XEN_FRONT_RING_INIT(&vusb->urb_ring, (struct xenusb_urb_sring *)page, XEN_PAGE_SIZE);

	err = setup_page(vusb, &page, &vusb->conn_ring_ref);
	if (err)
		goto fail;
	XEN_FRONT_RING_INIT(&vusb->conn_ring, (struct xenusb_conn_sring *)page, XEN_PAGE_SIZE);

	for (i = 0; i < RING_SIZE(&vusb->conn_ring); i++)
		RING_GET_REQUEST(&vusb->conn_ring, i)->id = i;
	vusb->conn_ring.req_prod_pvt = i;
	RING_PUSH_REQUESTS(&vusb->conn_ring);

	err = setup_irq(vusb);
	if (err)
		goto fail;

	spin_lock_irqsave(&vusb->lock, flags);
	vusb->connected = true;
	/* A backend that connects looks at the rings without being told. */
	vusb_urb_send(vusb);
	spin_unlock_irqrestore(&vusb->lock, flags);
	return 0;

fail:
	vusb_rings_teardown(vusb);
	return err;
}

/*
 * Nobody touches the rings any more when this returns, and what was wrong with them has been said.
 * URBs are left as they are.
 */
void vusb_rings_teardown(struct vusb *vusb)
{
	unsigned long flags;

	spin_lock_irqsave(&vusb->lock, flags);
	vusb->connected = false;
	spin_unlock_irqrestore(&vusb->lock, flags);

	/* Waits for the handler. */
	if (vusb->irq)
		unbind_from_irqhandler(vusb->irq, vusb);
	vusb->irq = 0;
	flush_work(&vusb->report);

	teardown_page(vusb->urb_ring.sring, &vusb->urb_ring_ref);
	teardown_page(vusb->conn_ring.sring, &vusb->conn_ring_ref);
}
