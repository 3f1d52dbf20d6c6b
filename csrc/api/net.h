/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Network devices: frames between the queues of guests, and where they come from and go to. */

enum vh_net_limit {
    VH_NET_FRAME_MIN = 14,    /* an Ethernet header */
    VH_NET_NUMBERED = 18,     /* and a number */
    VH_NET_FRAME_MAX = 65550, /* and the largest packet behind one (virtio 1.3, 5.1.6.3.1) */
    VH_NET_STATIONS = 65,     /* addresses of a filter: the guest's own, and those of its driver's table */
};

/* What a driver has chosen to receive (virtio 1.3, 5.1.6.5.1). */
enum vh_net_mode {
    VH_NET_PROMISC = 1, /* everything, whatever else is set */
    VH_NET_ALLMULTI = 2,
    VH_NET_ALLUNI = 4,
    VH_NET_NOMULTI = 8,
    VH_NET_NOUNI = 16,
    VH_NET_NOBCAST = 32,
    VH_NET_VLANS = 64, /* of frames with a VLAN tag those in the table of VLANs */
};

struct vh_net_stations {
    uint32_t mode; /* enum vh_net_mode */
    uint32_t n;
    uint64_t mac[65]; /* VH_NET_STATIONS; of stations and of groups */
};

/* Which frames a guest receives. One thread changes it while the guest's receiving queues look at it. */
struct vh_net_filter {
    uint32_t bank; /* which of the two counts; the other one is changed */
    uint32_t pad;
    struct vh_net_stations stations[2];
    uint64_t vlan[64]; /* a bit for each VLAN */
};

/* One queue: what it does with frames, and what became of them. Every network's own structure begins with it. */
struct vh_net {
    struct vh_path path;
    /* Transmit: take the frames of a batch; chains left VH_POPPED are for Python. Returns their number. */
    uint32_t (*send)(struct vh_net *n, struct vh_batch *b);
    /* Receive: fill chains from n->from on, in order, and complete them. Returns how many it has completed. */
    uint32_t (*fill)(struct vh_net *n, const struct vh_queue *q, struct vh_batch *b);
    const struct vh_net_filter *filter; /* receive: frames that do not pass vanish; NULL: all pass */
    struct vh_batch *batch; /* receive: chains that were taken, of which those before `from` are returned */
    uint32_t from;
    uint32_t hungry;     /* receive: there may be a frame, but not enough room for it */
    uint32_t header;     /* bytes in front of each frame: 10, or 12 with VERSION_1 or MRG_RXBUF */
    uint32_t big;        /* the header's fields are big-endian: of a legacy driver on such a machine */
    uint32_t merge;      /* MRG_RXBUF: a received frame may take several chains */
    int32_t record;      /* pcap file that gets every frame of this queue, -1: none */
    uint32_t off;        /* the ring is disabled: what is sent vanishes, nothing is received */
    uint64_t frames;     /* sent or received by the guest */
    uint64_t bytes;      /* of these frames, without headers */
    uint64_t dropped;    /* for want of room, or because the network would not take them */
    uint64_t malformed;  /* the guest sent what is no frame, or asked for what was not negotiated */
    uint64_t unrecorded; /* the pcap file would not take them */
};

/* Receive buffers are filled with one frame, over and over; its payload begins with its number, big-endian. */
struct vh_net_generator {
    struct vh_net net;
    uint8_t *frame;
    uint32_t len; /* VH_NET_NUMBERED at least */
    uint32_t number;
};

/* One queue of a TAP interface; the header passes through. */
struct vh_net_tap {
    struct vh_net net;
    int32_t fd;
    uint32_t need;  /* receive: bytes of the largest frame to expect, with its header */
    uint32_t held;  /* receive: bytes of a frame in spare that waits for room; 0: none does */
    uint32_t pad;
    uint8_t *spare; /* receive: need + 1 bytes */
};

/* What a queue does from now on; the rest of its structure is set by the caller. */
void vh_net_discard(struct vh_net *n);
void vh_net_silence(struct vh_net *n);
void vh_net_generate(struct vh_net_generator *g);
void vh_net_tap_send(struct vh_net_tap *t);
void vh_net_tap_receive(struct vh_net_tap *t);
void vh_net_filter_by(struct vh_net *n, const struct vh_net_filter *f); /* receive, at any time */
void vh_net_filter_set(struct vh_net_filter *f, uint32_t mode, const uint64_t *macs, uint32_t n);
void vh_net_filter_vlan(struct vh_net_filter *f, uint32_t vlan, int on);
void vh_net_filter_no_vlans(struct vh_net_filter *f);
void vh_net_release(struct vh_net *n, struct vh_queue *q); /* put back what was taken and not filled */
