//! TLS 1.3 connections between a pool's backends and exporters
