import Ajv, { type ValidateFunction } from 'ajv';
import addFormats from 'ajv-formats';
import type { Json } from './api';
import type { Answer } from './harness';

/** The part of an operation or response that is JSON. */
export const jsonOf = (content: Json) => content?.['application/json'];

/** What an operation answers: JSON, or text. */
export const answerOf = (content: Json) => jsonOf(content) ?? content?.['text/plain'];

/** The statuses of an operation that are no errors. */
export const successesOf = (operation: Json): string[] =>
  Object.keys(operation.responses).filter((status) => Number(status) < 400);

/** A schema of OpenAPI 3.0 as JSON Schema, in which an answer may have no field that is not in the document. */
function toJsonSchema(schema: Json): Json {
  if (Array.isArray(schema)) return schema.map(toJsonSchema);
  if (typeof schema !== 'object' || schema === null) return schema;
  const { nullable, example, writeOnly, properties, ...rest } = schema;
  const converted: Json = Object.fromEntries(
    Object.entries(rest).map(([key, value]) => [key, key === 'enum' ? value : toJsonSchema(value)]),
  );
  if (properties) {
    converted.properties = Object.fromEntries(
      Object.entries(properties).map(([name, value]) => [name, toJsonSchema(value)]),
    );
    converted.additionalProperties ??= false;
  }
  if (!nullable) return converted;
  // A list of values must name null among them; the document's readers take a reference that may be null as it is meant.
  if (converted.type && !converted.allOf) return { ...converted, type: [converted.type, 'null'] };
  return { anyOf: [converted, { type: 'null' }] };
}

/** The API's document as a server serves it, and what can be held against it. */
export class ApiDocument {
  /** By names such as `GET /v1/tasks/{id}`. */
  readonly operations: Map<string, Json>;
  private readonly ajv = new Ajv({
    strict: true,
    allowUnionTypes: true,
    allErrors: true,
    keywords: ['components'],
  });
  private readonly validators = new Map<string, ValidateFunction>();

  /** @param now the present of the server, which is the example of an instant that has none */
  constructor(
    readonly document: Json,
    private readonly now: () => number = Date.now,
  ) {
    addFormats(this.ajv);
    this.ajv.addSchema({ $id: 'document', components: toJsonSchema(document.components) });
    this.operations = new Map(
      Object.entries<object>(document.paths).flatMap(([path, methods]) =>
        Object.entries(methods).map(([method, operation]) => [`${method.toUpperCase()} ${path}`, operation]),
      ),
    );
  }

  /** The schema that a reference means. */
  deref(schema: Json): Json {
    return schema?.$ref ? this.document.components.schemas[schema.$ref.split('/').pop()] : schema;
  }

  /** What is wrong with a value by a schema of the document, named by where it is. */
  problemsOf(where: string, schema: unknown, value: unknown): string[] {
    let validate = this.validators.get(where);
    if (!validate) {
      const text = JSON.stringify(toJsonSchema(schema)).replaceAll(
        '"#/components/',
        '"document#/components/',
      );
      validate = this.ajv.compile(JSON.parse(text));
      this.validators.set(where, validate);
    }
    return validate(value)
      ? []
      : (validate.errors ?? []).map((e) => `${where}${e.instancePath}: ${e.message}`);
  }

  /** What is wrong with an operation's answer: its status, its type, its body, its headers. */
  problemsOfAnswer(name: string, { status, headers, body }: Answer): string[] {
    const response = this.operations.get(name).responses[status];
    const where = `${name} ${status}`;
    if (!response) return [`${where}: is not in the document`];
    const problems: string[] = [];
    const type = headers.get('content-type')?.split(';')[0];
    const types = Object.keys(response.content ?? {});
    if (types.length === 0 ? body !== '' : !types.includes(type as string))
      problems.push(`${where}: is ${type}, not ${types.join() || 'empty'}`);
    else if (type === 'application/json')
      problems.push(...this.problemsOf(where, jsonOf(response.content).schema, body));
    // Unlike OpenAPI we take a header for required unless the document says that it is not.
    for (const [header, { required, schema }] of Object.entries<Json>(response.headers ?? {})) {
      const value = headers.get(header);
      if (value === null) {
        if (required !== false) problems.push(`${where}: has no ${header}`);
      } else if (schema.type === 'integer')
        problems.push(...this.problemsOf(`${where} ${header}`, schema, Number(value)));
    }
    return problems;
  }

  /** Puts together what a reader of the document is shown as an example, and tells which fields have none. */
  exampleOf(schema: Json, where: string, missing: string[]): unknown {
    if (schema.example !== undefined) return schema.example;
    if (schema.$ref) return this.exampleOf(this.deref(schema), where, missing);
    const part = schema.allOf?.[0] ?? schema.anyOf?.[0] ?? schema.oneOf?.[0];
    if (part) return this.exampleOf(part, where, missing);
    if (schema.properties) {
      return Object.fromEntries(
        Object.entries(schema.properties).map(([name, property]) => [
          name,
          this.exampleOf(property, `${where}.${name}`, missing),
        ]),
      );
    }
    if (schema.type === 'array') return [this.exampleOf(schema.items, `${where}[]`, missing)];
    if (schema.default !== undefined) return schema.default;
    if (schema.format === 'date-time') return new Date(this.now()).toISOString();
    missing.push(where);
    return undefined;
  }
}
