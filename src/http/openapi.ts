import { join } from 'node:path';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import {
  DocumentBuilder,
  getSchemaPath,
  type OpenAPIObject,
  type OperationObject,
  type ParameterObject,
  type ReferenceObject,
  type SchemaObject,
  SwaggerModule,
} from '@nestjs/swagger';
import { ErrorEnvelope } from './api-errors';
import { toApiError, toEnvelope } from './error-filter';

export const { version: VERSION } = require(join(__dirname, '../../package.json')) as { version: string };

/** Describes every route of the application. */
export function describeApi(app: NestFastifyApplication): OpenAPIObject {
  const config = new DocumentBuilder()
    .setTitle('DNS Agent Control Plane')
    .setDescription(
      'Agents register, heartbeat, lease work, extend leases, report observations, push metrics and fetch signed ' +
        'configuration. Operators enqueue tasks and watch the fleet. Every agent path exists twice: at the root and ' +
        'under `/v1/agents`. Errors are always `{error, message, retryable, details?}`.',
    )
    .setVersion(VERSION)
    // Relative to the document, so that it is right behind a path prefix too.
    .addServer('.', 'Where this document was fetched.')
    .addApiKey(
      { type: 'apiKey', in: 'header', name: 'X-Agent-Id', description: "The agent's id." },
      'agentId',
    )
    .addApiKey(
      { type: 'apiKey', in: 'header', name: 'X-Agent-Token', description: "The agent's token." },
      'agentToken',
    )
    // Not addBearerAuth, which adds that the token is a JWT.
    .addSecurity('operator', { type: 'http', scheme: 'bearer', description: "An operator's token." })
    .build();
  const document = SwaggerModule.createDocument(app, config, { operationIdFactory });
  for (const [path, { get, post, put, delete: remove }] of Object.entries(document.paths)) {
    for (const operation of [get, post, put, remove]) {
      if (!operation) continue;
      refine(operation, operation === get);
      // The second path of an agent's operation needs an id of its own.
      if (document.paths[path.replace(/^\/v1\/agents\//, '/')] && path.startsWith('/v1/agents/'))
        operation.operationId += 'V1';
    }
  }
  typeNumbers(document);
  addTaskExamples(document);
  return document;
}

/** Builds the id of an operation that declares none: `list` of `DomainsController` becomes `listDomains`. */
function operationIdFactory(controller: string, method: string): string {
  return `${method.replace(/\[\d+\]$/, '')}${controller.replace(/Controller$/, '')}`;
}

/** Adds to an operation what no decorator declares: the errors of bodies, the role, and whether it changes the fleet. */
function refine(operation: OperationObject & { 'x-role'?: string }, isRead: boolean): void {
  operation.parameters = (operation.parameters as ParameterObject[] | undefined)?.map(withoutExample);
  if (operation.requestBody) operation.responses = { ...operation.responses, ...bodyRefusals() };
  // An operator's route declares its role; an agent's is recognized by the headers that it needs.
  operation['x-role'] ??= operation.security?.some((needed) => 'agentId' in needed) ? 'agent' : 'public';
  const role = operation['x-role'];
  operation.description = [operation.description, `**Role:** ${role}.`].filter(Boolean).join('\n\n');
  // The documentation page asks before it executes these. An operation can declare otherwise.
  if (!isRead && role !== 'agent' && role !== 'public') {
    const marked = operation as { 'x-changes-fleet'?: boolean };
    marked['x-changes-fleet'] ??= true;
  }
}

/**
 * Moves a parameter's example to its description, because the documentation page fills examples in: optional ones would filter
 * every list, and required ones could revoke an agent by accident.
 */
function withoutExample(parameter: ParameterObject): ParameterObject {
  const { example, ...schema } = parameter.schema as SchemaObject;
  if (example === undefined) return parameter;
  const hint = schema.default === undefined && !schema.enum ? [`For example \`${example}\`.`] : [];
  return { ...parameter, schema, description: [parameter.description, ...hint].filter(Boolean).join(' ') };
}

/** The answers to bodies that are refused before the route is called. */
function bodyRefusals(): OperationObject['responses'] {
  const refusals = ['FST_ERR_CTP_BODY_TOO_LARGE', 'FST_ERR_CTP_INVALID_MEDIA_TYPE'].map((code) =>
    toApiError({ code }),
  );
  return Object.fromEntries(
    refusals.map((error) => [
      error.status,
      {
        description: `\`${error.code}\`: ${error.message}`,
        content: {
          'application/json': {
            schema: { $ref: getSchemaPath(ErrorEnvelope) },
            examples: { [error.code]: { value: toEnvelope(error) } },
          },
        },
      },
    ]),
  );
}

/**
 * Types every number as a 64-bit integer unless its class says `format: 'double'`: TypeScript has one type for both, and
 * nearly all of ours are ids, counts and milliseconds.
 */
function typeNumbers(part: unknown): void {
  if (typeof part !== 'object' || part === null) return;
  const schema = part as { type?: unknown; format?: string };
  if ((schema.type === 'number' && schema.format !== 'double') || schema.type === 'integer')
    Object.assign(schema, { type: 'integer', format: 'int64' });
  for (const [name, value] of Object.entries(part)) if (!/^examples?$/.test(name)) typeNumbers(value);
}

/** Adds an example task for each kind, including those of extensions. */
function addTaskExamples(document: OpenAPIObject): void {
  const schemas = document.components?.schemas ?? {};
  const deref = (schema: SchemaObject | ReferenceObject): SchemaObject =>
    '$ref' in schema ? (schemas[schema.$ref.split('/').pop() as string] as SchemaObject) : schema;
  const request = document.paths['/v1/tasks']?.post?.requestBody;
  const { spec: specOf } = schemas.TaskInput ? (deref(schemas.TaskInput).properties ?? {}) : {};
  const specs = specOf && 'anyOf' in specOf ? specOf.anyOf : undefined;
  if (!request || '$ref' in request || !specs) return;
  const examples: Record<string, { summary: string; value: object }> = {};
  for (const { properties = {}, required = [] } of specs.map(deref)) {
    const { kind: kinds, ...fields } = properties as Record<string, SchemaObject>;
    const spec = Object.fromEntries(required.map((name) => [name, fields[name]?.example]));
    for (const kind of (kinds?.enum ?? []) as string[])
      examples[kind] = { summary: `A ${kind} task that runs now`, value: { tasks: [{ kind, spec }] } };
  }
  Object.assign(request.content['application/json'] ?? {}, { examples });
}
