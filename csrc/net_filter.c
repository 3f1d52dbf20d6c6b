/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Which frames a guest wants, as its driver has said by the control queue (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3). */
#include "net.h"

enum { TAG_AT = 12, TAG = 0x8100, VLAN_MASK = 0xfff, HEAD = 16 };

static const uint64_t EVERYBODY = 0xffffffffffff, GROUP = (uint64_t)1 << 40;

static uint32_t word_at(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static bool listed(const struct vh_net_stations *s, uint64_t mac)
{
    uint32_t n = __atomic_load_n(&s->n, __ATOMIC_RELAXED);

    for (uint32_t i = 0; i < n; i++)
        if (__atomic_load_n(&s->mac[i], __ATOMIC_RELAXED) == mac)
            return true;
    return false;
}

/* A tag with VLAN 0 gives a frame a priority and puts it into no VLAN. */
static bool vlan_passes(const struct vh_net_filter *f, const uint8_t *head)
{
    uint32_t vlan = word_at(head + TAG_AT + 2) & VLAN_MASK;

    return word_at(head + TAG_AT) != TAG || !vlan ||
           (__atomic_load_n(&f->vlan[vlan / 64], __ATOMIC_RELAXED) >> vlan % 64 & 1);
}

bool vh_net_passes(const struct vh_net *n, const struct vh_iov *iov, uint32_t count, uint64_t skip)
{
    const struct vh_net_filter *f = __atomic_load_n(&n->filter, __ATOMIC_ACQUIRE);
    const struct vh_net_stations *s;
    uint8_t head[HEAD] = {0};
    uint32_t mode;
    uint64_t to;

    if (!f)
        return true;
    s = &f->stations[__atomic_load_n(&f->bank, __ATOMIC_ACQUIRE)];
    mode = __atomic_load_n(&s->mode, __ATOMIC_RELAXED);
    if (mode & VH_NET_PROMISC)
        return true;
    vh_gather(iov, count, skip, head, sizeof(head));
    if ((mode & VH_NET_VLANS) && !vlan_passes(f, head))
        return false;
    to = (uint64_t)word_at(head) << 32 | (uint64_t)word_at(head + 2) << 16 | word_at(head + 4);
    if (to == EVERYBODY)
        return !(mode & VH_NET_NOBCAST);
    if (to & GROUP)
        return !(mode & VH_NET_NOMULTI) && ((mode & VH_NET_ALLMULTI) || listed(s, to));
    return !(mode & VH_NET_NOUNI) && ((mode & VH_NET_ALLUNI) || listed(s, to));
}

void vh_net_filter_by(struct vh_net *n, const struct vh_net_filter *f)
{
    __atomic_store_n(&n->filter, f, __ATOMIC_RELEASE);
}

/* A frame that arrives meanwhile is judged by the old addresses or by the new ones. */
void vh_net_filter_set(struct vh_net_filter *f, uint32_t mode, const uint64_t *macs, uint32_t n)
{
    uint32_t next = !f->bank;
    struct vh_net_stations *s = &f->stations[next];

    for (uint32_t i = 0; i < n; i++)
        __atomic_store_n(&s->mac[i], macs[i], __ATOMIC_RELAXED);
    __atomic_store_n(&s->n, n, __ATOMIC_RELAXED);
    __atomic_store_n(&s->mode, mode, __ATOMIC_RELAXED);
    __atomic_store_n(&f->bank, next, __ATOMIC_RELEASE);
}

void vh_net_filter_vlan(struct vh_net_filter *f, uint32_t vlan, int on)
{
    uint64_t *word = &f->vlan[vlan / 64], bit = (uint64_t)1 << vlan % 64;

    __atomic_store_n(word, on ? *word | bit : *word & ~bit, __ATOMIC_RELAXED);
}

void vh_net_filter_no_vlans(struct vh_net_filter *f)
{
    for (uint32_t i = 0; i < sizeof(f->vlan) / sizeof(f->vlan[0]); i++)
        __atomic_store_n(&f->vlan[i], 0, __ATOMIC_RELAXED);
}
