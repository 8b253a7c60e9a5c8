/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * pick - which instance a new connection goes to: the health rule and the random choice, for BPF and userspace.
 *
 * The caller brings the clock, the random number and the map values; nothing here reads a map. A set of instances is
 * a 64-bit mask over ph_id.refs, so trying the next one is clearing a bit.
 */
#ifndef PHALA_PICK_H
#define PHALA_PICK_H

#include "abi.h"

enum ph_health {
	PH_HEALTH_OK,
	PH_HEALTH_GONE,			/* the slot is another generation's, or answers to another id */
	PH_HEALTH_DRAINING,
	PH_HEALTH_NEVER,		/* no handshake yet */
	PH_HEALTH_OLD,			/* the last handshake is too old */
};

/**
 * ph_gateway_is_stale() - has no manager refreshed health for too long to believe it?
 * @gw: the gateway's state.
 * @boot_now_ns: CLOCK_BOOTTIME.
 *
 * Return: 1 when new connections must be refused, else 0.
 */
static inline int ph_gateway_is_stale(const struct ph_gateway *gw, __u64 boot_now_ns)
{
	return boot_now_ns > gw->health_now_ns && boot_now_ns - gw->health_now_ns > gw->manager_grace_ns;
}

/* How many connections the app whose id this is may have. @limit: the gateway's own. Return: 0 when there is no limit. */
static inline __u32 ph_app_limit(const struct ph_id *app, __u32 limit)
{
	if (app->flow_limit == PH_LIMIT_NONE)
		return 0;
	return app->flow_limit ? app->flow_limit : limit;
}

/* Ids are compared as eight words; both are zero padded. */
static inline int ph_id_equal(const char *a, const char *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 differ = 0;

	for (int i = 0; i < PH_ID_SIZE / 8; i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

/**
 * ph_instance_health() - may a new connection for @id go to this instance?
 * @gw: the gateway's state.
 * @instance: the value of slot @ref->slot; read without a lock, so it may change under the caller.
 * @ref: the reference that was found under @id.
 * @id: the id asked for, zero padded to PH_ID_SIZE, 8-byte aligned.
 * @ret_address: the address inside the tunnel; set on PH_HEALTH_OK and only then.
 *
 * Age is measured against gw->health_now_ns and not against a clock: a gateway whose manager died keeps the health it
 * last knew. The generation is read before and after everything else that is taken from the value; x86 keeps loads in
 * order, so holding the compiler back is enough.
 */
static inline enum ph_health ph_instance_health(const struct ph_gateway *gw, const struct ph_instance *instance,
						const struct ph_ref *ref, const char *id, __be32 *ret_address)
{
	const volatile struct ph_instance *v = instance;
	__u64 now_ns = ((const volatile struct ph_gateway *)gw)->health_now_ns;
	__u64 seen_ns;
	__be32 address;
	__u32 state;

	if (!ref->generation || v->generation != ref->generation)
		return PH_HEALTH_GONE;
	__asm__ volatile("" ::: "memory");
	address = v->address;
	seen_ns = v->handshake_ns;
	state = v->state;
	if (!ph_id_equal(instance->instance_id, id) && !ph_id_equal(instance->app_id, id))
		return PH_HEALTH_GONE;
	__asm__ volatile("" ::: "memory");
	if (v->generation != ref->generation)
		return PH_HEALTH_GONE;
	if (state == PH_INSTANCE_DRAINING)
		return PH_HEALTH_DRAINING;
	if (state != PH_INSTANCE_READY)
		return PH_HEALTH_GONE;
	if (!(gw->flags & PH_GATEWAY_EXTERNAL)) {
		if (!seen_ns)
			return PH_HEALTH_NEVER;
		if (now_ns > seen_ns && now_ns - seen_ns >= gw->healthy_for_ns)
			return PH_HEALTH_OLD;
	}
	*ret_address = address;
	return PH_HEALTH_OK;
}

/**
 * ph_pick() - one of the set bits, each as likely as any other.
 * @mask: candidates; must not be 0.
 * @random: 32 uniform random bits. The bias of the scaling is below 2^-26 for 64 candidates.
 *
 * Return: the number of the bit, 0-63.
 */
static inline __u32 ph_pick(__u64 mask, __u32 random)
{
	__u32 count = 0, nth;

	for (int i = 0; i < PH_APP_INSTANCES_MAX; i++)
		count += mask >> i & 1;
	nth = (__u64)random * count >> 32;
	for (__u32 i = 0; i < PH_APP_INSTANCES_MAX; i++) {
		if (!(mask >> i & 1))
			continue;
		if (!nth--)
			return i;
	}
	return 0;
}

#endif
