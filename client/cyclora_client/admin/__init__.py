"""Administration of a running server over REST."""

from __future__ import annotations

from cyclora_client.admin.audit import AuditEntry
from cyclora_client.admin.client import AdminClient
from cyclora_client.admin.cycles import CycleRow
from cyclora_client.admin.fleet import Worker
from cyclora_client.admin.keys import ApiKey, NewKey
from cyclora_client.admin.models import Model
from cyclora_client.admin.queue import QueueLength, WaitingOperation
from cyclora_client.admin.quotas import TenantQuotas
from cyclora_client.admin.tenants import Project, Tenant
from cyclora_client.admin.usage import UsageRow

__all__ = [
    "AdminClient",
    "ApiKey",
    "AuditEntry",
    "CycleRow",
    "Model",
    "NewKey",
    "Project",
    "QueueLength",
    "Tenant",
    "TenantQuotas",
    "UsageRow",
    "WaitingOperation",
    "Worker",
]
