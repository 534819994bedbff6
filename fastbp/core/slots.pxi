# Slots for a batch: which of them lie inside of others, and where their values and gradients are.

cdef inline bint is_inside(const Slot *slots, int i, const real *witness) noexcept nogil:
    """Whether slot i lies inside of its parent: its columns have to be whole panels, the last one as far as it goes."""
    cdef const SlotPlan *plan = &slots[i].plan
    return (plan.parent >= 0 and plan.column % panel_width(witness) == 0 and
            (plan.width % panel_width(witness) == 0 or plan.column + plan.width == slots[plan.parent].plan.width))


cdef inline bint needs_gradient(const Net *net, const Slot *slot) noexcept nogil:
    return slot.plan.learned > 0 or (net.input_gradient and slot.plan.learned == 0)


cdef void reserve_slots(Net *net, Arena *arena, intp batch, bint backward, const real *witness) noexcept nogil:
    """Memory for the values of a batch, or for its gradients, of slots that are no part of another."""
    cdef Slot *slot
    cdef bint inside
    cdef int i
    for i in range(net.slot_count):
        slot = &net.slots[i]
        slot.rows = batch
        inside = is_inside(net.slots, i, witness)
        if backward:
            slot.own_grad = NULL
            if not inside and needs_gradient(net, slot):
                slot.own_grad = take(arena, panel_bytes(batch, slot.plan.width, sizeof(real)))
        else:
            slot.own_value = NULL
            if (not inside or slot.plan.keeps_value) and not (i == 0 and net.is_sparse):
                slot.own_value = take(arena, panel_bytes(batch, slot.plan.width, sizeof(real)))


cdef void set_batch(Net *net, intp batch, const real *witness) noexcept nogil:
    """Lay the slots out for a batch of so many samples; behind a dropout, inference sees the value before it."""
    cdef Slot *slot
    cdef Slot *parent
    cdef intp offset
    cdef int i
    net.batch = batch
    for i in range(net.slot_count - 1, -1, -1):  # a parent comes after its parts
        slot = &net.slots[i]
        slot.rows, slot.layout = batch, in_panels(batch, witness)
        slot.value, slot.grad = slot.own_value, slot.own_grad
        slot.first = 0 if net.input_gradient else slot.plan.first
        if is_inside(net.slots, i, witness):
            parent = &net.slots[slot.plan.parent]
            offset = slot.plan.column // panel_width(witness) * slot.layout.panel
            if slot.value == NULL:
                slot.value = <real *> parent.value + offset
            if parent.grad != NULL:
                slot.grad = <real *> parent.grad + offset
        if not needs_gradient(net, slot):
            slot.grad = NULL
    if not net.training:
        for i in range(net.slot_count):
            slot = &net.slots[i]
            if slot.plan.source >= 0 and slot.value == slot.own_value:
                slot.value = net.slots[slot.plan.source].value


cdef void reserve_memory(Net *net, Arena *arena, intp batch, bint backward, const real *witness) noexcept nogil:
    """All memory of a forward pass or, besides, of a backward pass: of slots, of layers, and for what is added."""
    cdef Layer *layer
    cdef bint adds
    reserve_slots(net, arena, batch, backward, witness)
    for layer in net.layers[:net.count]:
        if layer.kind.reserve != NULL:
            layer.kind.reserve(net, layer, arena, backward, witness)
        adds = backward and layer.op.accumulates and not layer.kind.adds_gradient
        if adds and needs_gradient(net, src_slot(net, layer)):
            layer.partial = take(arena, panel_bytes(batch, layer.op.inputs, sizeof(real)))
