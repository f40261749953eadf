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
export { ApiErrors, GuardedErrors } from './http/api-errors';
export {
  AGENT_PATHS,
  Agent,
  type AgentIdentity,
  BodyLimit,
  BulkWrite,
  CurrentAgent,
  CurrentOperator,
  IdInPath,
  Operator,
  type OperatorIdentity,
  Public,
  Quota,
  type Role,
} from './http/decorators';
export { olderThan, type Page, PageEnd, PageQuery, pageOf } from './http/pagination';
export { IsTimestamp, parseTimestamp } from './http/timestamps';
export { IdParam, IsId } from './http/validation';
export type { Observation } from './leases/leases.dto';
export { type TakenReport, TaskKind, type TaskKindHandler } from './leases/task-kinds';
export { AuditLog, type Change } from './operators/audit-log';
export { OperatorsModule } from './operators/operators.module';
export { JobRunner } from './scheduling/job-runner';
export {
  type ExtensionInstrumentOptions as InstrumentOptions,
  ExtensionMeter as Meter,
} from './telemetry/extension-meter';
export type { CounterInstrument, GaugeInstrument, HistogramInstrument } from './telemetry/meter';
export { type TraceAttributes, trace } from './tracing';
