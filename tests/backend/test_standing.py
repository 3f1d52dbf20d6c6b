# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a back-end offers is told by the session or in front of it: nobody sees a difference."""

import logging
import struct
import time

import pytest

from tests.backend.peer import FEATURES, PROTOCOL_FEATURES, Peer
from tests.backend.serving import Serving
from vhost.mem import Memory
from vhost.protocol import (
    GetFeatures,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    ProtocolFeature,
    SetConfig,
)

GET_FEATURES = struct.pack("=III", 1, 1, 0)
GET_MAX_MEM_SLOTS = struct.pack("=III", GetMaxMemSlots.request, 1, 0)
GET_QUEUE_NUM = struct.pack("=III", GetQueueNum.request, 1, 0)


@pytest.fixture(params=[logging.INFO, logging.DEBUG], ids=["standing", "logged"])
def peer(server: Serving, request: pytest.FixtureRequest) -> Peer:
    logging.getLogger("vhost.backend").setLevel(request.param)  # with DEBUG every request goes to the session
    return server.connect()


def test_offers_are_the_same_before_and_after_negotiation(peer: Peer) -> None:
    with peer:
        before = peer.value(GetFeatures())
        assert before & FEATURES == FEATURES
        peer.negotiate()
        assert [peer.value(GetFeatures()) for _ in range(3)] == [before] * 3
        assert peer.value(GetProtocolFeatures()) & PROTOCOL_FEATURES == PROTOCOL_FEATURES
        assert peer.value(GetQueueNum()) == 2
        assert peer.value(GetMaxMemSlots()) == Memory.max_regions


def test_what_is_not_negotiated_is_not_told(peer: Peer) -> None:
    with peer:
        peer.negotiate(protocol=PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS)
        peer.sock.sendall(GET_MAX_MEM_SLOTS)
        request, _, size = struct.unpack("=III", peer.sock.recv(100))
        assert (request, size) == (GetMaxMemSlots.request, 0), "the form in which it fails"
        assert peer.value(GetFeatures())


def test_the_number_of_queues_is_told_once_it_is_offered(peer: Peer) -> None:
    with peer:
        peer.sock.sendall(GET_QUEUE_NUM)
        assert struct.unpack("=IIIQ", peer.sock.recv(100)) == (GetQueueNum.request, 5, 8, 2)
        peer.negotiate(protocol=ProtocolFeature.REPLY_ACK)
        for _ in range(2):
            assert peer.value(GetQueueNum()) == 2


def test_the_payload_of_a_message_is_no_request(peer: Peer) -> None:
    with peer:
        peer.negotiate()
        data, _ = peer.connection.send(SetConfig(0, 0, GET_FEATURES), need_reply=True)
        peer.sock.sendall(data[:-12])
        time.sleep(0.05)
        peer.sock.sendall(data[-12:])
        answer = peer.reply()
        assert isinstance(answer.message, SetConfig)
        assert answer.code != 0, "twelve bytes do not fit"
        assert peer.value(GetFeatures())


def test_requests_in_a_row_are_answered_in_their_order(peer: Peer) -> None:
    with peer:
        peer.negotiate()
        for _ in range(20):
            for message in (GetFeatures(), GetQueueNum(), GetProtocolFeatures(), GetFeatures()):
                peer.tell(message)
            replies = [peer.reply().message for _ in range(4)]
            assert [type(message) for message in replies] == [
                GetFeatures,
                GetQueueNum,
                GetProtocolFeatures,
                GetFeatures,
            ]
