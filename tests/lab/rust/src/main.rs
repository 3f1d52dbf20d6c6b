// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front-end built on rust-vmm's crate `vhost`: `front-end SOCKET FEATURES RINGS ANSWERS REQUEST...`
//!
//! It starts so many rings, of which the back-end must have as many (GET_QUEUE_NUM), puts requests on them and
//! prints what comes back, until there are so many answers. A request is `RING:HEX:N`: bytes for the device to
//! read, and how many it may write. An answer is `RING:HEX`, what it wrote.

use std::sync::atomic::Ordering::{Acquire, Release};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::{eventfd::EventFd, tempfile::TempFile};

const ENTRIES: u16 = 16; // of a ring: two for each request
const SHARE: u64 = 1 << 20; // of memory for each ring, where these are:
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x10000; // one for each descriptor
const ROOM: u64 = 0x1000;
const NEXT: u64 = 1 << 32; // flags of a descriptor, behind its size
const WRITE: u64 = 2 << 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rings: u64 = arguments[2].parse().unwrap();
    let mut answers: usize = arguments[3].parse().unwrap();

    let mut front_end = Frontend::connect(&arguments[0], rings).unwrap();
    front_end.set_owner().unwrap();
    let wanted = u64::from_str_radix(&arguments[1], 16).unwrap();
    let features = front_end.get_features().unwrap() & wanted;
    assert_eq!(features, wanted, "the back-end offers too little");
    let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    assert!(front_end.get_protocol_features().unwrap().contains(protocol));
    front_end.set_protocol_features(protocol).unwrap();
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // From here on the crate refuses to name a ring that is not one of these.
    assert!(front_end.get_queue_num().unwrap() >= rings, "the back-end has too few rings");
    front_end.set_features(features).unwrap();

    let file = TempFile::new().unwrap().into_file();
    file.set_len(rings * SHARE).unwrap();
    let range = (GuestAddress(0), (rings * SHARE) as usize, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    let region = VhostUserMemoryRegionInfo::from_guest_region(memory.iter().next().unwrap()).unwrap();
    front_end.set_mem_table(&[region]).unwrap();

    let (call, error) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let mut kicks = Vec::new();
    for ring in 0..rings as usize {
        let start = region.userspace_addr + ring as u64 * SHARE;
        let places = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            desc_table_addr: start,
            avail_ring_addr: start + AVAIL,
            used_ring_addr: start + USED,
            ..Default::default()
        };
        kicks.push(EventFd::new(0).unwrap());
        front_end.set_vring_num(ring, ENTRIES).unwrap();
        front_end.set_vring_addr(ring, &places).unwrap();
        front_end.set_vring_base(ring, 0).unwrap();
        front_end.set_vring_call(ring, &call).unwrap();
        front_end.set_vring_err(ring, &error).unwrap();
        front_end.set_vring_kick(ring, &kicks[ring]).unwrap();
        front_end.set_vring_enable(ring, true).unwrap();
    }

    let mut submitted = vec![0u16; rings as usize];
    for request in &arguments[4..] {
        let [ring, readable, writable] = request.split(':').collect::<Vec<_>>()[..] else {
            panic!("RING:HEX:N, not {request}");
        };
        let (ring, writable): (usize, u64) = (ring.parse().unwrap(), writable.parse().unwrap());
        let hex = |i| u8::from_str_radix(&readable[i..i + 2], 16).unwrap();
        let data: Vec<u8> = (0..readable.len()).step_by(2).map(hex).collect();
        let (start, count) = (ring as u64 * SHARE, submitted[ring]);
        assert!(count < ENTRIES / 2 && data.len() as u64 <= ROOM && writable <= ROOM, "too much");
        let mut parts = vec![(data.len() as u64, 0), (writable, WRITE)];
        parts.retain(|(size, _)| *size > 0);
        for (i, (size, flags)) in parts.iter().enumerate() {
            let number = u64::from(2 * count) + i as u64;
            let more = if i + 1 < parts.len() { NEXT } else { 0 };
            let entry = [start + BUFFERS + number * ROOM, size | flags | more | (number + 1) << 48];
            memory.write_obj(entry, GuestAddress(start + 16 * number)).unwrap();
            if *flags == 0 {
                memory.write_slice(&data, GuestAddress(entry[0])).unwrap();
            }
        }
        let slot = GuestAddress(start + AVAIL + 4 + 2 * u64::from(count));
        memory.write_obj(2 * count, slot).unwrap();
        submitted[ring] += 1;
        memory.store(submitted[ring], GuestAddress(start + AVAIL + 2), Release).unwrap();
        kicks[ring].write(1).unwrap();
    }

    let mut taken = vec![0u16; rings as usize];
    while answers > 0 {
        call.read().unwrap();
        for ring in 0..rings as usize {
            let start = ring as u64 * SHARE;
            while taken[ring] != memory.load::<u16>(GuestAddress(start + USED + 2), Acquire).unwrap() {
                let slot = GuestAddress(start + USED + 4 + 8 * u64::from(taken[ring]));
                let [head, size]: [u32; 2] = memory.read_obj(slot).unwrap();
                let [_, rest]: [u64; 2] = memory.read_obj(GuestAddress(start + 16 * u64::from(head))).unwrap();
                let number = u64::from(head) + u64::from(rest & NEXT != 0);
                let mut data = vec![0; size as usize];
                memory.read_slice(&mut data, GuestAddress(start + BUFFERS + number * ROOM)).unwrap();
                let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
                println!("{ring}:{hex}");
                taken[ring] += 1;
                answers -= usize::from(answers > 0);
            }
        }
    }
    for ring in 0..rings as usize {
        let base = front_end.get_vring_base(ring).unwrap();
        let used: u16 = memory.load(GuestAddress(ring as u64 * SHARE + USED + 2), Acquire).unwrap();
        assert_eq!(base, u32::from(used), "ring {ring} stopped with requests that it did not answer");
    }
}
