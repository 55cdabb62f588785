//! Scenarios that run the whole system on the simulator
