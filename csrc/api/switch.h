/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A virtual Ethernet switch: a ring of frames for each pair of a sending and a receiving queue. */

struct vh_fifo { /* frames from one sender to one receiver; 128 bytes, so that the two share no cache line */
    uint64_t head;       /* receiver: bytes taken */
    uint64_t pad1[7];
    uint64_t tail;       /* sender: bytes that the receiver may take */
    uint64_t next;       /* sender: bytes written */
    uint64_t seen_head;  /* sender: the head when it was last looked at */
    uint64_t pad2[5];
};

struct vh_mac { /* where a station is */
    uint64_t key;  /* its address << 16 | port + 1; 0: free */
    uint32_t seen; /* when it last sent, in seconds */
    uint32_t pad;
};

struct vh_receiver { /* a receiving queue, 64 bytes */
    uint32_t asleep; /* it wants to be woken */
    int32_t fd;      /* by this eventfd */
    uint32_t pad[14];
};

struct vh_port { /* 64 bytes */
    uint32_t active;    /* receiving queues in use; 0: nobody is there */
    uint32_t addresses; /* in the table of stations */
    uint32_t swept;     /* when its silent stations were last forgotten, in seconds */
    uint32_t pad[13];
};

struct vh_switch {
    uint32_t ports;
    uint32_t pairs;    /* queue pairs of each port */
    uint32_t size;     /* bytes of each ring of frames, a power of two */
    uint32_t buckets;  /* of the table of stations, a power of two; four stations each */
    uint64_t seed;     /* keeps guests from choosing buckets */
    uint32_t quota;    /* stations that one port may have in the table */
    uint32_t max_age;  /* seconds after which a silent station is forgotten */
    uint64_t mac;      /* frames for this address are left to Python, and so are those for all; 0: none */
    struct vh_port *port;
    struct vh_receiver *receiver; /* ports * pairs */
    struct vh_fifo *fifo;         /* [sending port][its pair][receiving port][its pair] */
    uint8_t *frames;              /* size bytes for each of them */
    struct vh_mac *station;
};

struct vh_net_port { /* one queue of a port */
    struct vh_net net;
    struct vh_switch *hub;
    uint32_t *touched; /* sender: rings that got frames in this batch, ports * pairs of them at most */
    uint32_t n_touched;
    uint32_t port;
    uint32_t pair;
    uint32_t turn;  /* receiver: whose frames come first */
    uint32_t armed; /* receiver: it has said that it sleeps */
};

void vh_port_send(struct vh_net_port *p);
void vh_port_receive(struct vh_net_port *p);
void vh_port_reset(struct vh_net_port *p);
int vh_port_inject(struct vh_net_port *p, const void *frame, uint32_t len);
void vh_switch_forget(struct vh_switch *s, uint32_t port);
void vh_switch_move(struct vh_switch *s, uint32_t port, uint64_t old, uint64_t new);
int vh_switch_find(struct vh_switch *s, uint64_t mac);
