/**
 * The API for extensions: `import { ... } from 'dns-agent-control-plane/extension'`. It changes only with the program's
 * version; any other part of the program may change at any time. Guide: docs/extending.md.
 */
export type { MigrationInterface, QueryRunner } from 'typeorm';
export { Clock, toTimestamp } from './clock';
export { Database } from './database/database';
export type { ColumnType, Dialect } from './database/dialect';
export type { SqlValue, Statements, Transaction } from './database/statements';
export { type ErrorCode, type ErrorDetails, fail } from './errors';
export { Agent, Operator, Public } from './http/access.decorators';
export { ApiErrors, GuardedErrors } from './http/api-errors';
export { BodyLimit } from './http/body-limit.decorators';
export type { AgentIdentity, OperatorIdentity, Role } from './http/control-plane-request';
export { BulkWrite } from './http/load.decorators';
export { olderThan, type Page, PageEnd, PageQuery, pageOf } from './http/pagination';
export { AGENT_PATHS, CurrentAgent, CurrentOperator, IdInPath } from './http/parameter.decorators';
export { Quota } from './http/quota.decorators';
export { IsTimestamp, parseTimestamp } from './http/timestamps';
export { IdParam, IsId } from './http/validation';
export type { Observation } from './kinds/observations';
export type { ObservedCheck, Signal, TargetSignal } from './kinds/signals';
export { type TakenReport, TaskKind, type TaskKindHandler } from './kinds/task-kinds';
export { AuditLog, type Change } from './operators/audit-log';
export { OperatorsModule } from './operators/operators.module';
export { JobRunner } from './scheduling/job-runner';
export {
  type ExtensionInstrumentOptions as InstrumentOptions,
  ExtensionMeter as Meter,
} from './telemetry/extension-meter';
export type { CounterInstrument, GaugeInstrument, HistogramInstrument } from './telemetry/meter';
export { type TraceAttributes, trace } from './tracing';
