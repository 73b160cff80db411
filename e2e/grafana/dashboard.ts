// What a dashboard of monitoring/ must be: Grafana's own types, without the index signatures that let any property pass,
// and with what its users expect of every panel made obligatory. Only types: nothing here is ever run.

import type * as grafana from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as timeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A type as JSON has it: an enum's values instead of its members. */
type Json<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends number
      ? `${T}` extends `${infer N extends number}`
        ? N
        : never
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

/** @grafana/schema has no type of Prometheus's query any more. */
interface Query extends grafana.DataQuery {
  datasource: grafana.DataSourceRef;
  expr: string;
  legendFormat?: string;
  instant?: boolean;
  range?: boolean;
  format?: "table" | "time_series" | "heatmap";
}

type Field<Custom> = Omit<grafana.FieldConfig, "custom"> & { custom?: Custom };
type Expected = "datasource" | "description" | "gridPos" | "id" | "title";
type Own = "type" | "options" | "fieldConfig" | "targets";

type Panel<Type, Options, Custom, Must extends keyof grafana.FieldConfig = never> = Omit<grafana.Panel, Own | Expected> &
  Required<Pick<grafana.Panel, Expected>> & {
    type: Type;
    options: Options;
    fieldConfig: Omit<grafana.FieldConfigSource, "defaults"> & {
      defaults: Field<Custom> & Required<Pick<Field<Custom>, Exclude<Must, "custom">>>;
    };
    targets: Query[];
  };

type AnyPanel =
  | Panel<"stat", stat.Options, never, "unit" | "thresholds">
  | Panel<"timeseries", timeseries.Options, timeseries.FieldConfig, "unit" | "thresholds">
  | Panel<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | Panel<"state-timeline", timeline.Options, timeline.FieldConfig, "mappings">
  | Panel<"table", table.Options, table.FieldConfig, "thresholds">
  | grafana.RowPanel;

export type Dashboard = Json<
  Omit<grafana.Dashboard, "panels"> &
    Required<Pick<grafana.Dashboard, "uid" | "title" | "description" | "templating" | "links" | "refresh">> & {
      panels: AnyPanel[];
    }
>;
