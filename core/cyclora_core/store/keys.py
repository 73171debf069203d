"""Every Redis key, made here and nowhere else; docs/redis.md says what each holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one deployment; the prefix lets several share a Redis, and tests stay apart."""

    prefix: str

    # Tenants and API keys
    def tenants(self) -> str:
        return f"{self.prefix}:tenants"

    def api_keys(self) -> str:
        return f"{self.prefix}:api_keys"

    def api_key_by_hash(self) -> str:
        return f"{self.prefix}:api_key_by_hash"

    def api_keys_used(self) -> str:
        return f"{self.prefix}:api_keys_used"

    def usage(self, tenant_id: str) -> str:
        return f"{self.prefix}:usage:{tenant_id}"

    def secret(self, name: str) -> str:
        return f"{self.prefix}:secret:{name}"

    def metered(self, tenant_id: str, hour: int) -> str:
        return f"{self.prefix}:metered:{tenant_id}:{hour}"

    def stored(self, tenant_id: str) -> str:
        return f"{self.prefix}:stored:{tenant_id}"

    def stored_as(self, tenant_id: str) -> str:
        return f"{self.prefix}:stored_as:{tenant_id}"

    def quota_use(self, tenant_id: str) -> str:
        return f"{self.prefix}:quota_use:{tenant_id}"

    def audit(self, tenant_id: str) -> str:
        return f"{self.prefix}:audit:{tenant_id}"

    # Sessions
    def session(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}"

    def session_by_idempotency(self, tenant_id: str, idempotency_key: str) -> str:
        return f"{self.prefix}:session_once:{tenant_id}:{idempotency_key}"

    def sessions_of(self, tenant_id: str) -> str:
        return f"{self.prefix}:sessions:{tenant_id}"

    def live_sessions(self) -> str:
        return f"{self.prefix}:live_sessions"

    def ending_sessions(self) -> str:
        return f"{self.prefix}:ending_sessions"

    def models_of_session(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}:models"

    def samplers_of_session(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}:samplers"

    def trace(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}:trace"

    def pending_samples(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}:pending"

    def custom_losses_of_session(self, session_id: str) -> str:
        return f"{self.prefix}:session:{session_id}:losses"

    def custom_losses_of(self, tenant_id: str) -> str:
        return f"{self.prefix}:losses:{tenant_id}"

    def sampling_session(self, sampling_session_id: str) -> str:
        return f"{self.prefix}:sampler:{sampling_session_id}"

    # Models and their command logs
    def model(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}"

    def log(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:log"

    def held(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:held"

    def failed(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:failed"

    def handed_over(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:handed_over"

    def models_of(self, tenant_id: str) -> str:
        return f"{self.prefix}:models:{tenant_id}"

    def ready_models(self, base_model: str) -> str:
        return f"{self.prefix}:ready:{base_model}"

    def gaps(self) -> str:
        return f"{self.prefix}:gaps"

    # Operations and futures
    def future(self, request_id: str) -> str:
        return f"{self.prefix}:future:{request_id}"

    def body(self, request_id: str) -> str:
        return f"{self.prefix}:body:{request_id}"

    def partial(self, request_id: str) -> str:
        return f"{self.prefix}:partial:{request_id}"

    def settled_channel(self) -> str:
        return f"{self.prefix}:settled"

    # Samples
    def sample_queue(self, base_model: str, tenant_id: str) -> str:
        return f"{self.prefix}:samples:{tenant_id}:{base_model}"

    def sample_tenants(self, base_model: str) -> str:
        return f"{self.prefix}:sample_tenants:{base_model}"

    def completions(self, sampling_session_id: str, clone_id: int) -> str:
        return f"{self.prefix}:completions:{sampling_session_id}:{clone_id}"

    # Checkpoints
    def checkpoint(self, path: str) -> str:
        return f"{self.prefix}:checkpoint:{path}"

    def checkpoints_of(self, tenant_id: str) -> str:
        return f"{self.prefix}:checkpoints:{tenant_id}"

    def checkpoints_of_model(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:checkpoints"

    def unlisted_of_model(self, model_id: str) -> str:
        return f"{self.prefix}:model:{model_id}:unlisted"

    def published_checkpoints(self) -> str:
        return f"{self.prefix}:published"

    def expiring_checkpoints(self) -> str:
        return f"{self.prefix}:expiring"

    def doomed_files(self) -> str:
        return f"{self.prefix}:doomed_files"

    # Base models, workers, the clock
    def base_models(self) -> str:
        return f"{self.prefix}:base_models"

    def target_modules(self) -> str:
        return f"{self.prefix}:target_modules"

    def process_settings(self) -> str:
        return f"{self.prefix}:process_settings"

    def workers(self) -> str:
        return f"{self.prefix}:workers"

    def worker_names(self) -> str:
        return f"{self.prefix}:worker_names"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}"

    def worker_lease(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}:lease"

    def worker_inbox(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}:inbox"

    def worker_samples(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}:samples"

    def worker_models(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}:models"

    def placements(self, base_model: str) -> str:
        return f"{self.prefix}:placements:{base_model}"

    def worker_cancelled(self, worker_id: str) -> str:
        return f"{self.prefix}:worker:{worker_id}:cancelled"

    def cycle_counters(self) -> str:
        return f"{self.prefix}:cycles"

    def ended_cycles(self, base_model: str) -> str:
        return f"{self.prefix}:ended_cycles:{base_model}"

    def leader(self) -> str:
        return f"{self.prefix}:leader"

    def vacancy(self) -> str:
        return f"{self.prefix}:vacancy"

    def wake(self) -> str:
        return f"{self.prefix}:wake"
