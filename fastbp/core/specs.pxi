# From the specs that Python hands over (plan.py) to the structs of the kernels. Codes that are unknown are errors here.

# Name to code, by family. The registries in Python are compared with these names when the package is imported.
CODES = {
    family: {name.lower(): int(member) for name, member in enum.__members__.items()}
    for family, enum in (("activations", _Activation), ("losses", _Loss), ("rules", _Rule))
}
CODES["kinds"] = KINDS  # filled by the files of layers/
cdef dict LOSS_CODES = CODES["losses"], RULE_CODES = CODES["rules"]
cdef int ACTIVATION_COUNT = len(CODES["activations"])


cdef int check_activation(int code) except -1:
    if not 0 <= code < ACTIVATION_COUNT:
        raise ValueError(f"activation: expected a code below {ACTIVATION_COUNT}, got {code}")
    return 0


cdef int check_op(const Op *op, int slots) except -1:
    for slot in (op.src, op.dst):
        if not 0 <= slot < slots:
            raise ValueError(f"ops: expected slots below {slots}, got {slot}")
    if max(op.z, op.input_z) >= slots:
        raise ValueError(f"ops: expected slots below {slots}, got {max(op.z, op.input_z)}")
    check_activation(op.activation)
    return check_activation(op.input_activation)


cdef int read_criterion(Criterion *criterion, spec, target, sample_weight) except -1:
    """A plan.LossSpec, which the caller keeps alive, for such targets and weights."""
    code = LOSS_CODES.get(spec.name)
    if code is None:
        raise ValueError(f"loss: expected one of {', '.join(LOSS_CODES)}, got {spec.name!r}")
    criterion.code, criterion.parameter, criterion.smoothing = code, spec.parameter, spec.smoothing
    criterion.weight, criterion.parameters = address_or_null(spec.class_weight), address_or_null(spec.parameters)
    criterion.missing, criterion.normalized = spec.missing, spec.normalized
    criterion.soft = code == CROSS_ENTROPY and target.ndim == 2
    criterion.weight_columns = 0 if sample_weight is None else sample_weight.size // len(sample_weight)
    return 0


cdef int read_groups(Update *u, groups) except -1:
    """An array of plan.GROUP, which the caller keeps alive, or None."""
    u.groups, u.group_count = NULL, 0
    if groups is not None:
        u.groups, u.group_count = <const Group *> address(groups), len(groups)
    return 0


cdef int read_update(Update *u, spec) except -1:
    """A plan.UpdateSpec, which the caller keeps alive; but for its learning rate and weight decay, see `read_rates`."""
    cdef int v
    state, groups, code = spec.state, spec.groups, RULE_CODES.get(spec.rule)
    if code is None:
        raise ValueError(f"rule: expected one of {', '.join(RULE_CODES)}, got {spec.rule!r}")
    if len(state) > MAX_STATE:
        raise ValueError(f"state: expected at most {<int> MAX_STATE} state vectors, got {len(state)}")
    u.rule = code
    for v in range(MAX_STATE):
        u.state[v] = address_or_null(state[v]) if v < len(state) else NULL
    u.momentum, u.nesterov, u.beta1, u.beta2 = spec.momentum, spec.nesterov, spec.beta1, spec.beta2
    u.alpha, u.eps, u.eps_hat = spec.alpha, spec.eps, spec.eps_hat
    u.decoupled, u.step, u.clip_value = spec.decoupled, spec.step, spec.clip_value
    u.l1 = spec.l1
    return read_groups(u, groups)


cdef int read_rates(double *rate, const double **rates, given, intp steps) except -1:
    """One number for all steps, or an array (steps,) float64 of one for each."""
    rates[0] = NULL
    if isinstance(given, float):
        rate[0] = given
        return 0
    if len(given) != steps:
        raise ValueError(f"update: expected {steps} rates, one for each step, got {len(given)}")
    rates[0] = <const double *> address(given)
    return 0
