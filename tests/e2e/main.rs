//! Real daemons over gRPC, driven by the real `labctl`.
