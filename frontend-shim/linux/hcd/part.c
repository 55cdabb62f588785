// SPDX-License-Identifier: GPL-2.0
/*
 * What one request carries: a part of an URB, up to 64 KiB of it, in up to 16 granted pages.
 *
 * A page is granted as it is only when all of it is data of the URB; other data of the guest that
 * shares a page with a small buffer is none of the backend's business. Everything else is copied
 * to and from bounce pages: beginnings and ends, small buffers, slab and vmalloc memory,
 * scatter lists with more pieces than segments, and isochronous packets, which are packed.
 *
 * We hold a reference to each page that is granted. If the backend keeps it mapped beyond its
 * answer, the page stays allocated until it lets go; its reader may be disappointed, but nobody
 * else gets the page meanwhile. The grant reference is lost with it, and replaced by another.
 *
 * Bounce pages come from the kernel's atomic reserves, which may be empty just when the kernel
 * writes to one of our disks to have memory again. So some pages are reserved for disks. Requests of
 * other devices may wait for the device for any time, and never get those.
 */

#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/scatterlist.h>

#include <xen/page.h>

#include "vusb.h"

/* A place in the buffer of an URB. */
struct walk {
	struct urb *urb;
	/* The entry of the scatter list; NULL when the buffer is linear. */
	struct scatterlist *sg;
	/* Bytes into the entry, or into the buffer. */
	u32 pos;
};

/* Bytes that lie in one piece, not across pages. */
struct run {
	/* NULL: not a page of the kernel's linear mapping, use addr. */
	struct page *page;
	u32 offset;
	void *addr;
	u32 length;
};

static void walk_start(struct walk *walk, struct urb *urb, u32 offset)
{
	walk->urb = urb;
	walk->sg = urb->num_sgs ? urb->sg : NULL;
	walk->pos = offset;
	while (walk->sg && walk->pos >= walk->sg->length) {
		walk->pos -= walk->sg->length;
		walk->sg = sg_next(walk->sg);
	}
}

/* The next at most max bytes. False when a scatter list ends before its URB does. */
static bool walk_peek(const struct walk *walk, u32 max, struct run *run)
{
	if (walk->urb->num_sgs) {
		unsigned long at;

		if (!walk->sg)
			return false;
		at = walk->sg->offset + walk->pos;
		run->page = pfn_to_page(page_to_pfn(sg_page(walk->sg)) + (at >> PAGE_SHIFT));
		run->offset = offset_in_page(at);
		run->addr = NULL;
		max = min(max, walk->sg->length - walk->pos);
	} else {
		run->addr = walk->urb->transfer_buffer + walk->pos;
		run->offset = offset_in_page(run->addr);
		run->page = virt_addr_valid(run->addr) ? virt_to_page(run->addr) : NULL;
	}
	run->length = min_t(u32, max, PAGE_SIZE - run->offset);
	return true;
}

static void walk_advance(struct walk *walk, u32 bytes)
{
	walk->pos += bytes;
	while (walk->sg && walk->pos >= walk->sg->length) {
		walk->pos -= walk->sg->length;
		walk->sg = sg_next(walk->sg);
	}
}

static void run_copy(const struct run *run, struct page *page, u32 offset, u32 bytes, bool to_page)
{
	void *ours = kmap_local_page(page) + offset;
	void *theirs = run->addr ? run->addr : kmap_local_page(run->page) + run->offset;

	if (to_page)
		memcpy(ours, theirs, bytes);
	else
		memcpy(theirs, ours, bytes);
	if (!run->addr)
		kunmap_local(theirs);
	kunmap_local(ours);
}

/* Copies between an URB's buffer and the beginning of a page. */
static void walk_copy(struct walk *walk, struct page *page, u32 bytes, bool to_page)
{
	u32 done = 0;
	struct run run;

	while (done < bytes && walk_peek(walk, bytes - done, &run)) {
		run_copy(&run, page, done, run.length, to_page);
		walk_advance(walk, run.length);
		done += run.length;
	}
}

/*
 * May the backend have this page itself? A page that kmalloc() manages cannot be kept alive by a
 * reference, and one that another domain has granted to us is not ours to grant. (The flag for that
 * has other meanings for pages of other kinds; those are merely copied.)
 */
static bool grantable(const struct run *run)
{
	return run->page && run->length == PAGE_SIZE && sendpage_ok(run->page) &&
	       !vusb_page_of_kmalloc(run->page) &&
	       (PageCompound(run->page) || !PageForeign(run->page));
}

static struct page *pool_take(struct vusb *vusb)
{
	struct page *page = list_first_entry(&vusb->pages, struct page, lru);

	list_del(&page->lru);
	vusb->n_pages--;
	return page;
}

/* Bounce pages begin as zeroes: the backend sees in them only what went to or came from it. */
static struct page *bounce_get(struct vusb *vusb, bool may_use_reserve)
{
	struct page *page = NULL;

	if (vusb->n_pages > VUSB_RESERVED_PAGES)
		return pool_take(vusb);
	if (!vusb_fault_page())
		page = alloc_page(GFP_ATOMIC | __GFP_ZERO | __GFP_NOWARN);
	if (!page && may_use_reserve && vusb->n_pages)
		page = pool_take(vusb);
	return page;
}

static void bounce_put(struct vusb *vusb, struct page *page)
{
	if (vusb->n_pages < VUSB_CACHED_PAGES) {
		list_add(&page->lru, &vusb->pages);
		vusb->n_pages++;
	} else {
		__free_page(page);
	}
}

/*
 * May this request have reserved pages? Only one that can be what frees memory, and that ends without
 * anybody's doing: of a device with a disk, and not a poll for events.
 */
static bool may_use_reserve(const struct urb *urb)
{
	const struct usb_host_config *config = READ_ONCE(urb->dev->actconfig);
	int i;

	if (!config || usb_pipeint(urb->pipe))
		return false;
	/* Unlike the interfaces these are there for as long as the device is. */
	for (i = 0; i < USB_MAXINTERFACES && config->intf_cache[i]; i++) {
		if (config->intf_cache[i]->altsetting[0].desc.bInterfaceClass ==
		    USB_CLASS_MASS_STORAGE)
			return true;
	}
	return false;
}

/* Replaces grant references that a backend keeps. False: there are none now. */
static bool replace_grants(struct vusb *vusb)
{
	unsigned int i, n = READ_ONCE(vusb->lost_grants);
	grant_ref_t fresh;

	if (!n)
		return true;
	if (vusb_fault_grant() || gnttab_alloc_grant_references(n, &fresh))
		return false;
	spin_lock_irq(&vusb->lock);
	for (i = 0; i < n; i++)
		gnttab_release_grant_reference(&vusb->grants,
					       gnttab_claim_grant_reference(&fresh));
	vusb->lost_grants -= n;
	spin_unlock_irq(&vusb->lock);
	return true;
}

/* Fills the pool for a request of any size. False: there is no memory now. */
static bool fill_pool(struct vusb *vusb, gfp_t gfp)
{
	while (READ_ONCE(vusb->n_pages) < VUSB_RESERVED_PAGES + VUSB_SEGMENTS) {
		struct page *page = vusb_fault_page() ? NULL : alloc_page(gfp | __GFP_ZERO);

		if (!page)
			return false;
		spin_lock_irq(&vusb->lock);
		bounce_put(vusb, page);
		spin_unlock_irq(&vusb->lock);
	}
	return true;
}

/* In a context that may wait for memory. */
static void refill(struct work_struct *work)
{
	struct vusb *vusb = container_of(to_delayed_work(work), struct vusb, refill);
	bool filled = fill_pool(vusb, GFP_NOIO);

	filled &= replace_grants(vusb);
	spin_lock_irq(&vusb->lock);
	/* Pages that have come back since may be enough for some requests. */
	vusb_urb_send(vusb);
	if (!filled && !vusb->dead)
		mod_delayed_work(vusb_workqueue, &vusb->refill, HZ / 10);
	spin_unlock_irq(&vusb->lock);
}

/* A request could not be sent for want of pages or grant references: sees that there are some. */
void vusb_pool_refill(struct vusb *vusb)
{
	/* Not sooner than refill() wants to try again. */
	queue_delayed_work(vusb_workqueue, &vusb->refill, 0);
}

int vusb_pool_init(struct vusb *vusb)
{
	int err;

	BUILD_BUG_ON(PAGE_SIZE != XEN_PAGE_SIZE);
	BUILD_BUG_ON(sizeof(struct usb_iso_packet_descriptor) != 16);
	BUILD_BUG_ON(VUSB_ISOC_PACKETS * sizeof(struct usb_iso_packet_descriptor) > XEN_PAGE_SIZE);
	BUILD_BUG_ON(sizeof(struct xenusb_urb_request) != 148);
	BUILD_BUG_ON(sizeof(struct xenusb_urb_response) != 16);
	BUILD_BUG_ON(VUSB_SLOTS != 16);

	INIT_LIST_HEAD(&vusb->pages);
	INIT_DELAYED_WORK(&vusb->refill, refill);
	err = gnttab_alloc_grant_references(VUSB_GRANTS, &vusb->grants);
	if (err)
		return err;
	vusb->has_grants = true;
	return fill_pool(vusb, GFP_KERNEL) ? 0 : -ENOMEM;
}

void vusb_pool_free(struct vusb *vusb)
{
	struct page *page, *next;

	cancel_delayed_work_sync(&vusb->refill);
	list_for_each_entry_safe(page, next, &vusb->pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	vusb->n_pages = 0;
	if (vusb->has_grants)
		gnttab_free_grant_references(vusb->grants);
	vusb->has_grants = false;
}

/* What the segments of a request will be. */
struct layout {
	unsigned int n;
	struct {
		/* NULL: a bounce page. */
		struct page *page;
		u32 length;
	} segment[VUSB_SEGMENTS];
};

static bool layout_add(struct layout *layout, struct page *page, u32 length)
{
	if (layout->n == VUSB_SEGMENTS)
		return false;
	layout->segment[layout->n].page = page;
	layout->segment[layout->n].length = length;
	layout->n++;
	return true;
}

/* False when bounce pages alone will do, but this will not. */
static bool layout_direct(struct layout *layout, struct urb *urb, u32 offset, u32 length)
{
	struct walk walk;
	struct run run;
	/* Room in the last segment, if it is a bounce page. */
	u32 room = 0, bytes;

	layout->n = 0;
	walk_start(&walk, urb, offset);
	for (; length; length -= bytes) {
		if (!walk_peek(&walk, length, &run))
			return false;
		bytes = run.length;
		if (grantable(&run)) {
			room = 0;
			if (!layout_add(layout, run.page, bytes))
				return false;
		} else if (room) {
			bytes = min(bytes, room);
			layout->segment[layout->n - 1].length += bytes;
			room -= bytes;
		} else {
			if (!layout_add(layout, NULL, bytes))
				return false;
			room = PAGE_SIZE - bytes;
		}
		walk_advance(&walk, bytes);
	}
	return true;
}

static void layout_bounce(struct layout *layout, u32 length)
{
	u32 bytes;

	layout->n = 0;
	for (; length; length -= bytes) {
		bytes = min_t(u32, length, PAGE_SIZE);
		/* Never more than 16: no part is larger. */
		if (WARN_ON_ONCE(!layout_add(layout, NULL, bytes)))
			return;
	}
}

/*
 * Takes the pages of a layout, and a grant reference for each. On failure none, and what was taken
 * is given back.
 */
static int take_pages(struct vusb *vusb, struct vusb_slot *slot, const struct layout *layout)
{
	bool reserve = may_use_reserve(slot->vurb->urb);
	struct vusb_segment *segment;
	unsigned int i;
	int ref;

	for (i = 0; i < layout->n; i++) {
		segment = &slot->segments[i];
		ref = vusb_fault_grant() ? -ENOSPC : gnttab_claim_grant_reference(&vusb->grants);
		if (ref < 0)
			goto fail;
		segment->ref = ref;
		segment->bounce = !layout->segment[i].page;
		if (segment->bounce) {
			segment->page = bounce_get(vusb, reserve);
			if (!segment->page) {
				gnttab_release_grant_reference(&vusb->grants, ref);
				goto fail;
			}
		} else {
			segment->page = layout->segment[i].page;
			get_page(segment->page);
		}
		slot->n_segments = i + 1;
	}
	return 0;

fail:
	for (i = 0; i < slot->n_segments; i++)
		gnttab_release_grant_reference(&vusb->grants, slot->segments[i].ref);
	vusb_part_free(vusb, slot);
	return -ENOMEM;
}

static void grant_segment(struct vusb *vusb, struct vusb_slot *slot, unsigned int i, u32 length,
			  bool readonly)
{
	struct vusb_segment *segment = &slot->segments[i];

	gnttab_grant_foreign_access_ref(segment->ref, vusb->xbdev->otherend_id,
					xen_page_to_gfn(segment->page), readonly);
	slot->request.seg[i].gref = segment->ref;
	slot->request.seg[i].offset = 0;
	slot->request.seg[i].length = length;
}

static int fill_data(struct vusb *vusb, struct vusb_slot *slot)
{
	struct urb *urb = slot->vurb->urb;
	bool out = usb_urb_dir_out(urb);
	struct layout layout;
	struct walk walk;
	unsigned int i;
	int err;

	if (!layout_direct(&layout, urb, slot->offset, slot->length))
		layout_bounce(&layout, slot->length);
	err = take_pages(vusb, slot, &layout);
	if (err)
		return err;

	walk_start(&walk, urb, slot->offset);
	for (i = 0; i < layout.n; i++) {
		if (out && slot->segments[i].bounce)
			walk_copy(&walk, slot->segments[i].page, layout.segment[i].length, true);
		else
			walk_advance(&walk, layout.segment[i].length);
		grant_segment(vusb, slot, i, layout.segment[i].length, out);
	}
	slot->request.nr_buffer_segs = layout.n;
	return 0;
}

/* Copies between a packet and its place among the packed ones. */
static void packet_copy(struct vusb_slot *slot, u32 at, void *buffer, u32 bytes, bool out)
{
	u32 chunk;

	for (; bytes; bytes -= chunk, at += chunk, buffer += chunk) {
		void *place = kmap_local_page(slot->segments[at >> PAGE_SHIFT].page);

		chunk = min_t(u32, bytes, PAGE_SIZE - offset_in_page(at));
		if (out)
			memcpy(place + offset_in_page(at), buffer, chunk);
		else
			memcpy(buffer, place + offset_in_page(at), chunk);
		kunmap_local(place);
	}
}

static int fill_isoc(struct vusb *vusb, struct vusb_slot *slot)
{
	struct urb *urb = slot->vurb->urb;
	struct usb_iso_packet_descriptor *descriptors;
	bool out = usb_urb_dir_out(urb);
	struct layout layout;
	unsigned int i, n_data;
	u32 at = 0;
	int err;

	layout_bounce(&layout, slot->length);
	n_data = layout.n;
	layout_add(&layout, NULL, slot->packets * sizeof(*descriptors));
	err = take_pages(vusb, slot, &layout);
	if (err)
		return err;

	descriptors = kmap_local_page(slot->segments[n_data].page);
	for (i = 0; i < slot->packets; i++) {
		const struct usb_iso_packet_descriptor *packet =
			&urb->iso_frame_desc[slot->first_packet + i];

		if (out)
			packet_copy(slot, at, urb->transfer_buffer + packet->offset,
				    packet->length, true);
		descriptors[i].offset = at;
		descriptors[i].length = packet->length;
		descriptors[i].actual_length = 0;
		/* As the USB core does: what nobody transfers has not been transferred. */
		descriptors[i].status = -EXDEV;
		at += packet->length;
	}
	kunmap_local(descriptors);

	for (i = 0; i < layout.n; i++)
		grant_segment(vusb, slot, i, layout.segment[i].length, out && i < n_data);
	slot->request.nr_buffer_segs = n_data;
	slot->request.u.isoc.nr_frame_desc_segs = 1;
	return 0;
}

/* Can we carry this URB at all? The USB core has checked less than it may seem. */
bool vusb_part_valid(struct urb *urb)
{
	const struct usb_iso_packet_descriptor *packet;
	int i;

	switch (usb_pipetype(urb->pipe)) {
	case PIPE_BULK:
		break;
	case PIPE_ISOCHRONOUS:
		if (urb->num_sgs || urb->number_of_packets <= 0)
			return false;
		for (i = 0; i < urb->number_of_packets; i++) {
			packet = &urb->iso_frame_desc[i];
			if (packet->length > VUSB_ISOC_BYTES ||
			    packet->offset > urb->transfer_buffer_length ||
			    packet->length > urb->transfer_buffer_length - packet->offset)
				return false;
		}
		break;
	default:
		/* One transfer is one request. */
		if (urb->transfer_buffer_length > VUSB_PART_BYTES)
			return false;
	}
	return !urb->transfer_buffer_length || urb->num_sgs || urb->transfer_buffer;
}

/*
 * Copies and grants the data of slot->vurb that slot->offset, length, first_packet and packets
 * name, and describes it in slot->request. -ENOMEM: not now.
 */
int vusb_part_fill(struct vusb *vusb, struct vusb_slot *slot)
{
	slot->n_segments = 0;
	/* 16 bits: a full 65,536 becomes 0, the backend goes by the segments. */
	slot->request.buffer_length = (u16)slot->length;
	if (usb_pipeisoc(slot->vurb->urb->pipe))
		return fill_isoc(vusb, slot);
	return fill_data(vusb, slot);
}

static void put_ref(struct vusb *vusb, grant_ref_t ref)
{
	if (vusb_fault_lost_grant()) {
		gnttab_free_grant_reference(ref);
		vusb->lost_grants++;
		vusb_pool_refill(vusb);
	} else {
		gnttab_release_grant_reference(&vusb->grants, ref);
	}
}

/* Ends the backend's access. False: it has not let go of a page, which stays allocated for it. */
bool vusb_part_revoke(struct vusb *vusb, struct vusb_slot *slot)
{
	bool released = true;
	unsigned int i;

	for (i = 0; i < slot->n_segments; i++) {
		struct vusb_segment *segment = &slot->segments[i];

		if (gnttab_end_foreign_access_ref(segment->ref)) {
			put_ref(vusb, segment->ref);
			continue;
		}
		/* Both the reference and our hold on the page go when the backend lets go. */
		get_page(segment->page);
		gnttab_end_foreign_access(segment->ref, segment->page);
		vusb->lost_grants++;
		/* Not for the pool. */
		segment->bounce = false;
		released = false;
	}
	if (!released)
		vusb_pool_refill(vusb);
	return released;
}

/* Copies what came in, actual bytes, to the URB's buffer. Not for isochronous requests. */
void vusb_part_copy_back(struct vusb_slot *slot, u32 actual)
{
	struct walk walk;
	unsigned int i;
	u32 bytes;

	if (usb_urb_dir_out(slot->vurb->urb))
		return;
	walk_start(&walk, slot->vurb->urb, slot->offset);
	for (i = 0; i < slot->n_segments && actual; i++, actual -= bytes) {
		bytes = min_t(u32, actual, slot->request.seg[i].length);
		if (slot->segments[i].bounce)
			walk_copy(&walk, slot->segments[i].page, bytes, false);
		else
			walk_advance(&walk, bytes);
	}
}

/*
 * Of a cancelled request: the packets up to the last one that the device has seen. The backend has
 * no access any more.
 */
unsigned int vusb_part_isoc_ran(struct vusb_slot *slot)
{
	const struct usb_iso_packet_descriptor *packets;
	unsigned int ran = slot->packets;

	packets = kmap_local_page(slot->segments[slot->n_segments - 1].page);
	while (ran && packets[ran - 1].status && !packets[ran - 1].actual_length)
		ran--;
	kunmap_local(packets);
	return ran;
}

/* Takes over what the backend says of the first packets. It has no access any more. */
void vusb_part_isoc_results(struct vusb_slot *slot, unsigned int packets)
{
	struct urb *urb = slot->vurb->urb;
	const struct usb_iso_packet_descriptor *theirs;
	bool in = usb_urb_dir_in(urb);
	unsigned int i;
	u32 at = 0;

	theirs = kmap_local_page(slot->segments[slot->n_segments - 1].page);
	for (i = 0; i < packets; i++, theirs++) {
		struct usb_iso_packet_descriptor *packet =
			&urb->iso_frame_desc[slot->first_packet + i];

		packet->actual_length = theirs->actual_length;
		packet->status = theirs->status;
		if (packet->actual_length > packet->length) {
			packet->actual_length = packet->length;
			packet->status = -EOVERFLOW;
		}
		/* Drivers take it for an errno. */
		if (packet->status > 0 || packet->status < -MAX_ERRNO)
			packet->status = -EPROTO;
		if (packet->status)
			urb->error_count++;
		if (in)
			packet_copy(slot, at, urb->transfer_buffer + packet->offset,
				    packet->actual_length, false);
		urb->actual_length += packet->actual_length;
		at += packet->length;
	}
	kunmap_local(theirs - packets);
}

/* Lets go of the pages, to which the backend must not have access any more. */
void vusb_part_free(struct vusb *vusb, struct vusb_slot *slot)
{
	unsigned int i;

	for (i = 0; i < slot->n_segments; i++) {
		if (slot->segments[i].bounce)
			bounce_put(vusb, slot->segments[i].page);
		else
			put_page(slot->segments[i].page);
	}
	slot->n_segments = 0;
}
