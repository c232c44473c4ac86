"""What single operations cost, on a CPU or a GPU: attention, paged KV, quantised KV, pools."""
