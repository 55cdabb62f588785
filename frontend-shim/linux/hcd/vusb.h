/* SPDX-License-Identifier: GPL-2.0 */
/*
 * xen-vusb-hcd: a USB host controller driver for Xen's paravirtual USB.
 *
 * front.c   life of a controller on the xenbus: probe, connect, resume, close
 * ring.c    the two shared rings, the event channel, request slots
 * urb.c     URBs: queues per endpoint, what may be sent when, unlink, give back
 * part.c    what one request carries: segments, bounce pages, isochronous packets
 * suspend.c a suspend of the domain: requests are taken back, and nobody notices
 * hub.c     the virtual root hub
 * faults.c  in builds for tests only: faults that are switched on in debugfs
 *
 * Locking: everything in struct vusb and below it is under vusb->lock, taken with interrupts off.
 * Inside it may be taken the USB core's hcd_urb_list_lock, the lock of its give-back queue, and
 * the locks of the grant tables; none of their holders calls us. usb_hcd_poll_rh_status(),
 * usb_hc_died() and everything that speaks to xenstore is called without it.
 *
 * The life cycle (connect, resume, close, remove) needs no lock of its own: xenbus runs the watch
 * callbacks in one thread, that thread is the one that suspends and resumes the domain, and it
 * waits for the callback before it calls remove.
 */
#ifndef XEN_VUSB_HCD_H
#define XEN_VUSB_HCD_H

#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/usb.h>
#include <linux/usb/hcd.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <xen/grant_table.h>
#include <xen/interface/io/usbif.h>
#include <xen/xenbus.h>

#include "compat.h"
#include "faults.h"

#define VUSB_SLOTS		XENUSB_URB_RING_SIZE
#define VUSB_SEGMENTS		XENUSB_MAX_SEGMENTS_PER_REQUEST
/* The most data of one request. */
#define VUSB_PART_BYTES		(VUSB_SEGMENTS * XEN_PAGE_SIZE)
/*
 * An isochronous request has its packets' descriptors in one more page. Twice as many would
 * fit, but a backend in user space submits them to usbfs, which takes no more.
 */
#define VUSB_ISOC_BYTES		((VUSB_SEGMENTS - 1) * XEN_PAGE_SIZE)
#define VUSB_ISOC_PACKETS	128
/* Every slot can have all its segments granted. */
#define VUSB_GRANTS		(VUSB_SLOTS * VUSB_SEGMENTS)
/*
 * Bounce pages that only disks' requests get, when there is no other memory: for one request of
 * the largest size, beside one page for each of the others that the ring has room for.
 */
#define VUSB_RESERVED_PAGES	(VUSB_SEGMENTS + VUSB_SLOTS)
/* Bounce pages that are kept for the next request, with those. */
#define VUSB_CACHED_PAGES	(VUSB_RESERVED_PAGES + 32)
/* Entries of a scatter list that the USB core may give us; any sizes, see part.c. */
#define VUSB_SG_ENTRIES		64

/* An URB that we have. Hangs off urb->hcpriv. */
struct vusb_urb {
	struct urb *urb;
	/* The how manyth it is. */
	u64 order;
	/* In the queue of its endpoint, for as long as a part of it is to be sent. */
	struct list_head node;
	/* How much has been sent: bytes of the buffer; isochronous: packets. */
	u32 sent;
	/* A packet of length zero is to follow the data. */
	bool zero_packet;
	/* The USB core wants it back; no more parts are sent. */
	bool cancelled;
	/* Requests that the backend has not answered. */
	unsigned int in_flight;
	/* Of isochronous URBs: the first status other than 0 of a request. */
	int status;
};

/* An endpoint with URBs. Hangs off usb_host_endpoint.hcpriv. */
struct vusb_endpoint {
	/* In vusb->ready while the queue has URBs. */
	struct list_head node;
	/* URBs with something to send, oldest first. */
	struct list_head queue;
	unsigned int in_flight;
	/* Of these, those that the backend was asked to take back for a suspend. */
	unsigned int recalled;
};

/* One granted page of a request. We hold a reference to the page for as long as it is granted. */
struct vusb_segment {
	grant_ref_t ref;
	struct page *page;
	/* Not the URB's own page but one that its data is copied to or from. */
	bool bounce;
};

enum vusb_slot_state {
	VUSB_SLOT_FREE,
	VUSB_SLOT_SUBMIT,
	VUSB_SLOT_UNLINK,
};

/* A request that the backend has not answered. */
struct vusb_slot {
	enum vusb_slot_state state;
	/* In vusb->unlinks while it is to be unlinked and that was not sent. */
	struct list_head unlink;
	struct xenusb_urb_request request;

	/* VUSB_SLOT_SUBMIT only: */
	struct vusb_urb *vurb;
	/* The how manyth request it is. */
	u64 order;
	/* It is to be unlinked, or was. */
	bool unlinked;
	/* Not because its driver wants that, but for a suspend. */
	bool recalled;
	/* Bytes of data; and where they are in the URB's buffer, unless it is isochronous. */
	u32 length;
	u32 offset;
	/* Isochronous: the packets. */
	unsigned int first_packet;
	unsigned int packets;
	/* Granted pages: those of the data, then that of the packets' descriptors. */
	unsigned int n_segments;
	struct vusb_segment segments[VUSB_SEGMENTS];
};

struct vusb_port {
	/* wPortStatus and wPortChange (USB 2.0, 11.24.2.7). */
	u16 status;
	u16 change;
	/* XENUSB_SPEED_*: what the backend says is plugged in, also into a port without power. */
	u8 speed;
	/* Clearing of USB_PORT_STAT_SUSPEND has been asked for. */
	bool resuming;
	/* Jiffies when the reset or the resume that is under way is over. */
	unsigned long settled;
};

/* A controller: the private part of its usb_hcd. */
struct vusb {
	struct xenbus_device *xbdev;
	struct device_dma_parameters dma_parms;
	/* Of everything here; see above. */
	spinlock_t lock;

	/* The rings exist. Not while a resumed domain waits for its new backend. */
	bool connected;
	/* No URBs any more: being removed, or the backend broke the protocol. */
	bool dead;
	/* URBs wait: the domain is about to be suspended, or was. See suspend.c. */
	bool held;
	/*
	 * The PM core does not see the devices. Of the thread that suspends and resumes, and while
	 * the system is not frozen, of the work.
	 */
	bool unseen;
	struct work_struct thawed;
	/* Woken when no request is on the ring, while URBs wait. */
	wait_queue_head_t quiet;
	/* How it did, until that has been reported. */
	const char *violation;
	struct work_struct report;

	struct xenusb_urb_front_ring urb_ring;
	struct xenusb_conn_front_ring conn_ring;
	grant_ref_t urb_ring_ref;
	grant_ref_t conn_ring_ref;
	evtchn_port_t evtchn;
	unsigned int irq;

	struct vusb_slot slots[VUSB_SLOTS];
	unsigned int slots_used;
	/* Makes an id differ from those that its slot had before. */
	u16 generation;
	/* Counts URBs and requests. */
	u64 urbs;
	u64 requests;

	/* Endpoints with something to send, next one first. */
	struct list_head ready;
	/* Slots to be unlinked. */
	struct list_head unlinks;

	/* Grant references, as many as the ring has room for, less those that are lost. */
	grant_ref_t grants;
	bool has_grants;
	/* Those that the backend still used when it had answered their requests. */
	unsigned int lost_grants;
	struct list_head pages;
	unsigned int n_pages;
	/* Gets pages and grant references when they could not be had in atomic context. */
	struct delayed_work refill;

	unsigned int n_ports;
	bool usb11;
	struct vusb_port ports[XENUSB_MAX_PORTNR];
};

static inline struct vusb *hcd_to_vusb(struct usb_hcd *hcd)
{
	return (struct vusb *)hcd->hcd_priv;
}

static inline struct usb_hcd *vusb_to_hcd(struct vusb *vusb)
{
	return container_of((void *)vusb, struct usb_hcd, hcd_priv);
}

/* front.c */
extern struct workqueue_struct *vusb_workqueue;

/* ring.c */
int vusb_rings_setup(struct vusb *vusb);
void vusb_rings_teardown(struct vusb *vusb);
struct vusb_slot *vusb_slot_get(struct vusb *vusb, enum vusb_slot_state state);
void vusb_slot_put(struct vusb *vusb, struct vusb_slot *slot);
void vusb_slot_queue(struct vusb *vusb, struct vusb_slot *slot);
void vusb_slot_unlink(struct vusb *vusb, struct vusb_slot *slot);
void vusb_ring_publish(struct vusb *vusb);
void vusb_violation(struct vusb *vusb, const char *what);
void vusb_report_violation(struct work_struct *work);

/* urb.c */
int vusb_urb_enqueue(struct usb_hcd *hcd, struct urb *urb, gfp_t mem_flags);
int vusb_urb_dequeue(struct usb_hcd *hcd, struct urb *urb, int status);
void vusb_endpoint_disable(struct usb_hcd *hcd, struct usb_host_endpoint *ep);
void vusb_urb_send(struct vusb *vusb);
void vusb_urb_answered(struct vusb *vusb, struct vusb_slot *slot,
		       const struct xenusb_urb_response *response);
void vusb_urb_forget_sent(struct vusb *vusb, int status);
void vusb_urb_give_back_all(struct vusb *vusb);

/* part.c */
int vusb_pool_init(struct vusb *vusb);
void vusb_pool_refill(struct vusb *vusb);
void vusb_pool_free(struct vusb *vusb);
bool vusb_part_valid(struct urb *urb);
int vusb_part_fill(struct vusb *vusb, struct vusb_slot *slot);
bool vusb_part_revoke(struct vusb *vusb, struct vusb_slot *slot);
void vusb_part_copy_back(struct vusb_slot *slot, u32 actual);
unsigned int vusb_part_isoc_ran(struct vusb_slot *slot);
void vusb_part_isoc_results(struct vusb_slot *slot, unsigned int packets);
void vusb_part_free(struct vusb *vusb, struct vusb_slot *slot);

/* suspend.c */
extern const struct dev_pm_ops vusb_pm_ops;
int vusb_suspend_init(void);
void vusb_suspend_exit(void);
bool vusb_hibernated(void);
void vusb_let_go(struct vusb *vusb);
void vusb_thawed(struct work_struct *work);
int vusb_suspend(struct xenbus_device *dev);

/* hub.c */
int vusb_hub_event(struct vusb *vusb, u8 port, u8 speed, bool *changed);
int vusb_hub_status_data(struct usb_hcd *hcd, char *buf);
int vusb_hub_control(struct usb_hcd *hcd, u16 request, u16 value, u16 index, char *buf,
		     u16 length);
int vusb_hub_suspend(struct usb_hcd *hcd);
int vusb_hub_resume(struct usb_hcd *hcd);

#endif
